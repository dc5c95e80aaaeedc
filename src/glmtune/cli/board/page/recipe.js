// The tab Recipe: a form of every key, what is wrong with it, whether it fits, as YAML and as a command.
import { sentence, t } from "./texts.js";
import { act, ask, button, bytes, complain, copyButton, count, duration, find, labeled, make, say } from "./parts.js";

const CHECK_AFTER = 250, PLAN_AFTER = 900; // milliseconds after the last key
let go = () => {};
let form = null;       // the keys, as the board sent them
let values = {};       // by key; a key that is missing has its default
let checked = null;    // {problems, yaml, command}
let plan = null;       // {made} or {problem}; null while it is not known
let file = "recipe.yaml";
let isPlanning = false;
let checkTimer = null, planTimer = null, planning = null, turn = 0;
let device = "", processes = 1;

export function begin({ show }) { go = show; }

/** Take the rows that were looked at into the form. */
export function useRows(path, model, columns) {
  values["data.train"] = [path];
  if (Object.keys(columns).length) values["data.columns"] = columns;
  if (model) values["model.name_or_path"] = model;
}

export async function show(what) {
  if (form === null) {
    form = await ask("form");
    const started = await ask("read", { name: "chatglm3-lora" });
    values = { ...started.values, ...values };
  }
  if (what?.path) {
    await act(null, "", async () => { take(await ask("read", { path: what.path })); file = what.path; });
  } else if (what?.text) {
    await act(null, "", async () => take(await ask("read", { text: what.text })));
  }
  draw();
  changed();
}

export function redraw() { if (form !== null) draw(); }

function take(read) {
  values = read.values;
  checked = { problems: [], ...read };
  draw();
  changed();
}

// ---- the form -------------------------------------------------------------------------------

function fieldsOf(section) {
  if (section.name !== "adapter") return section.fields;
  return [...section.fields, ...(form.methods[values["adapter.method"] || "lora"] || [])];
}

function draw() {
  drawTools();
  const focused = document.activeElement?.id;
  const open = new Set([...document.querySelectorAll("#recipe-form details[open]")].map((each) => each.id));
  find("recipe-form").replaceChildren(...form.sections.map((section) => {
    const fields = fieldsOf(section);
    const isMain = (field) => field.is_shown || field.is_required || field.key in values;
    const main = fields.filter(isMain), more = fields.filter((field) => !isMain(field));
    const id = `more-${section.name}`;
    const folded = more.length ? make("details", { id, open: open.has(id) },
      make("summary", {}, `${t("advanced")} (${more.length})`), make("div", { class: "fields" }, more.map(drawField))) : null;
    return make("fieldset", { class: "card" }, make("legend", {}, t("sections")[section.name]),
      make("div", { class: "fields" }, main.map(drawField)), folded);
  }));
  if (focused) find(focused)?.focus();
  drawSide();
}

function drawField(field) {
  const name = field.key.slice(field.key.indexOf(".") + 1);
  const input = inputOf(field);
  input.id = `key-${field.key}`;
  const isSet = field.key in values;
  const box = labeled(`${name}${field.is_required ? ` (${t("required")})` : ""}`, input, sentence(field));
  if (isSet) box.classList.add("is-set");
  return box;
}

function inputOf(field) {
  const value = values[field.key];
  const set = (made) => (event) => { put(field, made(event.target.value)); };
  if (field.kind === "choice" || field.kind === "switch") {
    const choices = field.kind === "switch" ? [true, false] : field.choices;
    const label = (each) => (each === null ? t("none") : each === true ? t("on") : each === false ? t("off") : String(each));
    const all = field.is_nullable ? [null, ...choices] : choices;
    const options = all.map((each) => make("option", { value: JSON.stringify(each), selected: JSON.stringify(each) === JSON.stringify(field.key in values ? value : field.default) },
      `${label(each)}${JSON.stringify(each) === JSON.stringify(field.default) ? ` · ${t("default")}` : ""}`));
    return make("select", { onchange: (event) => {
      const chosen = JSON.parse(event.target.value);
      if (field.key === "adapter.method") chooseMethod(chosen);
      else put(field, JSON.stringify(chosen) === JSON.stringify(field.default) ? undefined : chosen);
    } }, options);
  }
  const isEmpty = field.default === null || field.default === undefined || field.default === "" || (Array.isArray(field.default) && !field.default.length);
  const placeholder = isEmpty ? "" : typeof field.default === "object" ? JSON.stringify(field.default) : String(field.default);
  if (field.kind === "list") {
    const text = value === undefined ? "" : value === null ? "" : value.every((each) => typeof each !== "object") ? value.join("\n") : JSON.stringify(value);
    const rows = Math.min(Math.max(text.split("\n").length, 1), 6);
    return make("textarea", { rows, spellcheck: "false", placeholder: isEmpty ? t("onePerLine") : placeholder, oninput: set((text) => listOf(text, field.items === "integer")) }, text);
  }
  if (field.kind === "json") {
    const text = value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);
    return make("input", { value: text, spellcheck: "false", placeholder: placeholder || t("asJson"), oninput: set(jsonOf) });
  }
  if (field.kind === "text") {
    const list = field.key === "model.name_or_path" ? "models" : null;
    return make("input", { value: value ?? "", spellcheck: "false", placeholder, list, oninput: set((text) => text || undefined) });
  }
  return make("input", { value: value === null ? "null" : value ?? "", inputmode: "decimal", placeholder, oninput: set((text) => (field.is_nullable && text.trim() === "null" ? null : numberOf(text))) });
}

/** What is typed as plain values; the board says what it expected if they are none. */
function numberOf(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  return Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed;
}

function jsonOf(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  try { return JSON.parse(trimmed); } catch { return trimmed; }
}

function listOf(text, areNumbers) {
  const trimmed = text.trim();
  if (trimmed.startsWith("[")) return jsonOf(trimmed);
  const lines = trimmed.split("\n").map((line) => line.trim()).filter(Boolean);
  return lines.length ? lines.map((line) => (areNumbers ? numberOf(line) : line.startsWith("{") ? jsonOf(line) : line)) : undefined;
}

function put(field, value) {
  if (value === undefined) delete values[field.key];
  else values[field.key] = value;
  find(`key-${field.key}`).closest(".field").classList.toggle("is-set", value !== undefined);
  changed();
}

/** Keep the keys that the other method has too. */
function chooseMethod(method) {
  const known = new Set(form.methods[method].map((field) => field.key));
  for (const key of Object.keys(values)) if (key.startsWith("adapter.") && !known.has(key)) delete values[key];
  if (method !== "lora") values["adapter.method"] = method;
  draw();
  changed();
}

// ---- checking and planning ------------------------------------------------------------------

function changed() {
  clearTimeout(checkTimer);
  clearTimeout(planTimer);
  planning?.abort();
  turn += 1;
  plan = null;
  isPlanning = true;
  checkTimer = setTimeout(check, CHECK_AFTER);
  drawSide();
}

async function check() {
  const mine = turn;
  try {
    const found = await ask("check", { values });
    if (mine !== turn) return;
    checked = found;
  } catch (error) { complain(error); return; }
  isPlanning = checked.problems.length === 0;
  markFields();
  drawSide();
  if (isPlanning) planTimer = setTimeout(makePlan, PLAN_AFTER);
}

function markFields() {
  const text = checked.problems.join("\n");
  for (const input of document.querySelectorAll("#recipe-form [id^='key-']")) {
    const key = input.id.slice(4).replace(/[.]/g, "\\.");
    input.setAttribute("aria-invalid", String(new RegExp(`(^|[^\\w.])${key}([^\\w.]|\\.?\\s|$)`, "m").test(text)));
  }
}

async function makePlan() {
  const mine = turn;
  planning = new AbortController();
  try {
    plan = { made: await ask("plan", { values, devices: device ? [device] : [] }, planning.signal) };
  } catch (error) {
    if (error.name === "AbortError" || mine !== turn) return;
    plan = { problem: error.message };
  }
  if (mine !== turn) return;
  isPlanning = false;
  drawSide();
}

function drawSide() {
  const yaml = checked?.yaml || "", command = checked?.command || "";
  const focused = document.activeElement?.id;
  const start = button(t("train"), startTraining, { class: "primary", id: "start", disabled: !yaml || checked.problems.length > 0 });
  const gpus = make("input", { id: "processes", type: "number", min: 1, max: 64, value: processes, oninput: (event) => { processes = Math.max(1, parseInt(event.target.value, 10) || 1); } });
  find("recipe-side").replaceChildren(
    make("div", { class: "card", "aria-live": "polite" }, make("h2", {}, t("verdict")), drawVerdict(),
      make("div", { class: "buttons" }, start, make("label", { class: "inline few" }, t("processes"), gpus))),
    shownText("command", command), shownText("yaml", yaml));
  if (focused && find("recipe-side").contains(find(focused))) find(focused).focus();
}

function shownText(name, text) {
  return make("div", { class: "card" }, make("div", { class: "row-head" }, make("h2", {}, t(name)), copyButton(() => text)),
    make("pre", { id: `recipe-${name}`, tabindex: "0" }, text));
}

function drawVerdict() {
  if (checked?.problems.length) {
    return [make("p", { class: "problem" }, t("problems")), make("ul", { id: "recipe-problems", class: "problem" }, checked.problems.map((each) => make("li", {}, each.replace(/^recipe: /, ""))))];
  }
  if (isPlanning) return make("p", { class: "busy", id: "verdict" }, t("planning"));
  if (plan === null) return null;
  if (plan.problem) return make("p", { class: "problem", id: "verdict" }, `${t("planFailed")}: ${plan.problem}`);
  const { made } = plan, { workload } = made;
  const field = make("input", { id: "plan-device", value: device, placeholder: "24GB", oninput: (event) => { device = event.target.value.trim(); }, onchange: changed });
  const seconds = made.run_seconds === null ? (made.pack_seconds === null ? t("timeUnknown") : "–") : `${t("about")} ${duration(made.run_seconds)}`;
  const size = workload.num_rows === null ? t("rowsUnknown") : `${count(workload.num_rows)} ${t("numRows")}, ${count(workload.num_steps)} ${t("steps")}, ${count(workload.num_tokens)} ${t("ofTokens")}`;
  return [...made.targets.map(drawTarget), make("p", {}, `${t("time")}: ${seconds}`), make("p", { class: "soft" }, size),
    made.note ? make("p", { class: "soft" }, made.note) : null, labeled(t("device"), field)];
}

function drawTarget(target, index) {
  const name = index === 0 ? t("thisMachine") : target.name;
  const text = `${name}: ${bytes(target.memory.required)} ${t("needed")}, ${bytes(target.capacity)} ${t("free")}`;
  const apply = button(t("apply"), (event) => act(event.target, "", async () => {
    const found = await ask("check", { values, overrides: target.changes.flatMap((change) => change.overrides) });
    if (found.problems.length) throw new Error(found.problems.join("\n"));
    take(found);
  }), { class: "small" });
  const changes = target.changes.length ? make("div", {}, make("p", {}, t("changes"), " ", apply),
    make("ul", {}, target.changes.map((change) => make("li", {}, make("code", {}, change.overrides.join(" ")), ` ${bytes(change.required)}`)))) : null;
  return make("div", { id: index === 0 ? "verdict" : null, class: `verdict ${target.fits ? "good" : "bad"}` },
    make("p", {}, make("strong", {}, target.fits ? `✓ ${t("fits")}` : `✗ ${t("fitsNot")}`), ` · ${text}`), changes,
    !target.fits && !target.would_fit ? make("p", {}, t("notEnough")) : null);
}

// ---- files and the start ----------------------------------------------------------------------

function drawTools() {
  const start = make("select", { id: "recipe-start", onchange: (event) => act(null, "", async () => take(await ask("read", { name: event.target.value }))) },
    make("option", { value: "", disabled: true, selected: true }, "…"), form.recipes.map((name) => make("option", { value: name }, name)));
  const name = make("input", { id: "recipe-file", value: file, spellcheck: "false", oninput: (event) => { file = event.target.value; } });
  const open = button(t("open"), (event) => act(event.target, "", async () => take(await ask("read", { path: file.trim() }))), { id: "open-recipe" });
  const save = button(t("save"), (event) => act(event.target, "", () => saveAs(false)).then((done) => done && say(done)), { id: "save-recipe" });
  const text = make("textarea", { id: "recipe-text", rows: 6, spellcheck: "false", "aria-label": t("paste") });
  const apply = button(t("apply"), (event) => act(event.target, "", async () => take(await ask("read", { text: text.value }))));
  const suggest = button(t("suggest"), (event) => act(event.target, t("suggesting"), async () => {
    const rows = (values["data.train"] || []).filter((each) => typeof each === "string");
    take(await ask("suggest", { model: values["model.name_or_path"] || "", rows }));
  }), { id: "suggest" });
  find("recipe-tools").replaceChildren(
    make("datalist", { id: "models" }, ["nano", "zai-org/chatglm3-6b"].map((each) => make("option", { value: each }))),
    make("div", { class: "fields" }, labeled(t("start"), start), labeled(t("openFile"), name)),
    make("div", { class: "buttons" }, open, save, suggest),
    make("details", {}, make("summary", {}, t("paste")), text, make("div", { class: "buttons" }, apply)));
}

async function saveAs(overwrite) {
  try {
    const { path } = await ask("save", { path: file.trim(), values, overwrite });
    return `${t("saved")} ${path}: glmtune train ${path}`;
  } catch (error) {
    if (error.status === 409 && !overwrite && window.confirm(`${file}: ${t("replace")}`)) return saveAs(true);
    throw error;
  }
}

async function startTraining(event) {
  planning?.abort();
  clearTimeout(planTimer);
  const started = await act(event.target, t("starting"), () => ask("start", { values, processes }));
  if (started) await go("run", { path: started.path });
}
