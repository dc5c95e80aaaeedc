// What the tabs share: requests, elements, numbers. All text becomes text nodes, never HTML.
import { chosenLanguage, t } from "./texts.js";

export const find = (id) => document.getElementById(id);

/** Make an element. `on...` is a listener; null, false and undefined leave an attribute out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

/** Send a request; the answer is what the board's function returned. */
export async function ask(name, body = {}, signal = undefined) {
  let response;
  try {
    response = await fetch(`api/${name}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(t("unreachable"), 0);
  }
  const answer = await response.json().catch(() => ({ error: t("unreachable") }));
  if (response.ok) return answer;
  if (response.status === 401) find("login").open || find("login").showModal();
  throw new Refused(answer.error || t("unreachable"), response.status);
}

export function say(text) { find("status").textContent = text; }

export function complain(error) {
  if (error && error.name === "AbortError") return;
  find("problem").textContent = error ? error.message : "";
  if (error) find("problem").scrollIntoView({ block: "nearest" });
}

/** Run what a button starts: it is off meanwhile, and a problem is shown. */
export async function act(button, text, work) {
  complain(null);
  say(text || t("working"));
  if (button) button.disabled = true;
  try {
    const result = await work();
    say(t("done"));
    return result;
  } catch (error) {
    say("");
    complain(error);
    return undefined;
  } finally {
    if (button) button.disabled = false;
  }
}

export function button(text, onclick, attributes = {}) {
  return make("button", { type: "button", onclick, ...attributes }, text);
}

export function copyButton(text) {
  const made = button(t("copy"), async () => {
    await navigator.clipboard.writeText(text());
    made.textContent = t("copied");
    setTimeout(() => { made.textContent = t("copy"); }, 1500);
  }, { class: "small" });
  return made;
}

/** A label around its field, with a sentence below that screen readers read with it. */
export function labeled(text, field, help = "") {
  const id = `help-${nextId++}`;
  if (help) field.setAttribute("aria-describedby", id);
  return make("label", { class: "field" }, make("span", {}, text), field, help ? make("small", { id }, help) : null);
}
let nextId = 1;

export function table(head, rows, caption = "") {
  const cells = (row, tag) => row.map((cell) => make(tag, tag === "th" ? { scope: "col" } : {}, cell));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || head.join(", ") },
    make("table", {}, make("thead", {}, make("tr", {}, cells(head, "th"))),
      make("tbody", {}, rows.map((row) => make("tr", {}, cells(row, "td"))))));
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(2);
  return value.toLocaleString(chosenLanguage() === "zh" ? "zh-CN" : "en-US", { maximumSignificantDigits: digits });
}

export const count = (value) => (value ?? 0).toLocaleString("en-US");

export function bytes(value) {
  if (!value) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${(value / 1024 ** power).toPrecision(3)} ${units[power]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const zh = chosenLanguage() === "zh";
  if (seconds < 90) return `${Math.round(seconds)} ${zh ? "秒" : "s"}`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} ${zh ? "分钟" : "min"}`;
  return `${(seconds / 3600).toPrecision(3)} ${zh ? "小时" : "h"}`;
}

export const badge = (state) => make("span", { class: `badge ${state}` }, t("states")[state] || state);

/** Repeat something while a tab is shown; it says after how many milliseconds, 0 is never. */
export function repeat(panel, work) {
  let timer = null;
  const again = async () => {
    clearTimeout(timer);
    if (panel.hidden || document.hidden) return;
    const wait = await work().then((ms) => {
      if (find("problem").textContent === t("unreachable")) complain(null); // it is back
      return ms;
    }, (error) => { complain(error); return 5000; });
    clearTimeout(timer);
    if (wait) timer = setTimeout(again, wait);
  };
  document.addEventListener("visibilitychange", again);
  return again;
}
