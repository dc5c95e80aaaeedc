// The board: tabs, language, key. Each tab is a file of its own; what they share is in parts.js.
import { switchLanguage, t, translate } from "./texts.js";
import { ask, complain, find, say } from "./parts.js";
import * as data from "./data.js";
import * as recipe from "./recipe.js";
import * as run from "./run.js";
import * as runs from "./runs.js";

const TABS = { data, recipe, run, runs };
const names = Object.keys(TABS);

/** Show a tab; `what` is handed to it: a file, a recipe, a run. */
async function show(name, what = undefined) {
  for (const each of names) {
    const isShown = each === name;
    find(each).hidden = !isShown;
    find(`tab-${each}`).setAttribute("aria-selected", String(isShown));
    find(`tab-${each}`).tabIndex = isShown ? 0 : -1;
  }
  complain(null);
  say("");
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
  await TABS[name].show(what).catch(complain);
}

async function begin() {
  translate();
  for (const tab of Object.values(TABS)) tab.begin({ show });
  const named = location.hash.slice(1);
  await show(names.includes(named) ? named : "data");
}

for (const name of names) find(`tab-${name}`).addEventListener("click", () => show(name));
find("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const now = names.findIndex((name) => !find(name).hidden);
  const next = names[(now + step + names.length) % names.length];
  show(next);
  find(`tab-${next}`).focus();
  event.preventDefault();
});
find("language").addEventListener("click", () => {
  switchLanguage();
  for (const tab of Object.values(TABS)) tab.redraw();
});
find("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const response = await fetch("api/login", { method: "POST", headers: { Authorization: `Bearer ${find("key").value}` } }).catch(() => null);
  if (!response || !response.ok) { find("key-problem").textContent = t("wrongKey"); return; }
  find("key").value = "";
  find("login").close();
  complain(null);
  await show(names.find((name) => !find(name).hidden) || "data");
});
ask("chat").then(begin, begin);
