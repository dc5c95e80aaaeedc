// The tab Runs: all runs below the start folder, compared and used.
import { proofName, t } from "./texts.js";
import { act, ask, badge, button, find, labeled, make, number, repeat, table } from "./parts.js";
import { lineChart } from "./charts.js";
import { encodePath } from "./run.js";

const LIST_MS = 3000;
let go = () => {};
let runs = [];
let selected = new Set();
let used = null;          // the path of the run that is used
let chat = { run: null, state: "closed" };
let jobs = [], logs = new Map();
let comparison = null;    // {found, curves}
let onlyDifferent = true;
let poll = async () => {};

export function begin({ show }) {
  go = show;
  poll = repeat(find("runs"), update);
}

export async function show(what) {
  if (what?.path) take(what.path);
  await poll();
  drawUse();
  if (what?.path) find("use").scrollIntoView({ block: "nearest" });
}

export function redraw() { draw(); drawUse(); drawComparison(); }

async function update() {
  runs = (await ask("runs")).runs;
  draw();
  const before = JSON.stringify([chat, jobs]);
  chat = await ask("chat");
  jobs = (await ask("jobs")).jobs;
  for (const job of jobs) {
    if (job.target !== used) continue;
    if (job.state === "running" || !logs.has(job.id) || logs.get(job.id).state !== job.state) {
      logs.set(job.id, await ask("job", { id: job.id }));
    }
  }
  if (used !== null && JSON.stringify([chat, jobs]) !== before) drawUse();
  drawLogs();
  return chat.state === "loading" || jobs.some((job) => job.state === "running") ? 1000 : LIST_MS;
}

function draw() {
  const focused = document.activeElement?.id;
  if (!runs.length) find("runs-list").replaceChildren(make("p", { class: "soft" }, t("noRuns")));
  else {
    const rows = runs.map((run) => [
      make("input", { type: "checkbox", id: `pick-${run.path}`, "aria-label": `${t("select")}: ${run.path}`, checked: selected.has(run.path), onchange: (event) => {
        if (event.target.checked) selected.add(run.path); else selected.delete(run.path);
        drawTools();
      } }),
      make("div", {}, make("strong", {}, run.path), run.title && run.title !== run.path ? make("small", {}, run.title) : null,
        make("span", { class: "buttons" }, button(t("watch"), () => go("run", { path: run.path }), { class: "small", id: `watch-${run.path}`, "aria-label": `${t("watch")}: ${run.path}` }),
          button(t("useIt"), () => { take(run.path); find("use").scrollIntoView({ block: "nearest" }); poll(); }, { class: "small", id: `use-${run.path}`, "aria-label": `${t("useIt")}: ${run.path}` }))),
      badge(run.state), number(run.loss), number(run.eval_loss),
      run.num_proofs ? make("div", {}, `${run.passed} / ${run.num_proofs}`, run.failed.map((name) => make("small", { class: "problem" }, `✗ ${proofName(name)}`))) : "–", run.date ? new Date(run.date).toLocaleString() : "–",
    ]);
    find("runs-list").replaceChildren(table([t("select"), t("name"), t("state"), t("loss"), t("heldOut"), t("proofs"), t("date")], rows, t("runs")).firstChild);
  }
  drawTools();
  if (focused) find(focused)?.focus({ preventScroll: true });
}

function drawTools() {
  const isEnough = selected.size >= 2;
  find("runs-tools").replaceChildren(button(t("compare"), compare, { id: "compare", disabled: !isEnough }), isEnough ? "" : make("small", {}, t("compareHelp")));
}

async function compare(event) {
  const paths = [...selected];
  await act(event.target, "", async () => {
    const found = await ask("compare", { paths });
    const curves = await Promise.all(paths.map((path) => ask("run", { path })));
    comparison = { found, curves: curves.map((each) => each.lines) };
    drawComparison();
  });
}

function drawComparison() {
  if (comparison === null) { find("comparison").replaceChildren(); return; }
  const { found, curves } = comparison;
  const of = (key) => curves.map((lines, index) => ({ name: found.names[index], points: lines.filter((line) => typeof line[key] === "number").map((line) => [line.step, line[key]]) }));
  const charts = [["loss", "loss"], ["eval_loss", "heldOut"], ["grad_norm", "norm"], ["tokens_per_second", "speed"]]
    .map(([key, title]) => lineChart(t(title), of(key))).filter(Boolean);
  const tables = Object.entries(found.tables).map(([title, rows]) => {
    const kept = rows.filter((row) => row.differs || !onlyDifferent);
    return kept.length ? make("div", {}, make("h3", {}, title), table(["", ...found.names], kept.map((row) => [row.label, ...row.values]), title)) : null;
  });
  const box = make("input", { type: "checkbox", checked: onlyDifferent, onchange: (event) => { onlyDifferent = event.target.checked; drawComparison(); } });
  find("comparison").replaceChildren(make("div", { class: "card", id: "compared" }, make("h2", {}, found.names.join(" · ")),
    found.notes.map((note) => make("p", { class: "soft" }, note)), make("div", { class: "charts" }, charts),
    make("label", { class: "inline" }, box, t("differs")), tables.some(Boolean) ? tables : make("p", {}, t("same"))));
}

/** Use another run; what was typed for the one before is forgotten. */
function take(path) {
  if (path !== used) find("use").replaceChildren();
  used = path;
  drawUse();
}

// ---- using a run --------------------------------------------------------------------------------

function drawUse() {
  if (used === null) { find("use").replaceChildren(); return; }
  const kept = Object.fromEntries([...find("use").querySelectorAll("input, select")].map((each) => [each.id, each.type === "checkbox" ? each.checked : each.value]));
  const focused = document.activeElement?.id;
  const open = [...find("use").querySelectorAll("details[open]")].map((each) => each.id);
  find("use").replaceChildren(make("div", { class: "card" }, make("h2", {}, used), drawChat(), drawEvaluate(), drawExport(), make("div", { id: "jobs" })));
  for (const id of open) if (find(id)) find(id).open = true;
  for (const [id, value] of Object.entries(kept)) {
    const field = find(id);
    if (!field) continue;
    if (field.type === "checkbox") field.checked = value; else field.value = value;
  }
  drawLogs();
  if (focused) find(focused)?.focus({ preventScroll: true });
}

function drawChat() {
  const isOurs = chat.run === used;
  const open = button(t("chat"), (event) => act(event.target, t("chatLoading"), async () => { chat = await ask("open-chat", { path: used }); drawUse(); await poll(); }), { class: "primary", id: "chat" });
  const close = button(t("chatClose"), (event) => act(event.target, "", async () => { chat = await ask("close-chat"); drawUse(); }), { id: "close-chat" });
  const run = runs.find((each) => each.path === used) || { is_usable: true, has_report: true };
  open.disabled = !run.is_usable;
  const report = run.has_report && make("a", { class: "button", href: `report/${encodePath(used)}`, target: "_blank", rel: "noopener" }, t("report"));
  const parts = isOurs && chat.state === "open" ? [make("a", { class: "button primary", id: "chat-link", href: "chat/", target: "_blank", rel: "noopener" }, t("chatOpen")), close]
    : isOurs && chat.state === "loading" ? [make("span", { class: "busy" }, t("chatLoading")), close] : [open];
  return [make("div", { class: "buttons" }, parts, report, button(t("watch"), () => go("run", { path: used }))),
    run.is_usable ? null : make("p", { class: "soft" }, t("nothingMade")),
    isOurs && chat.state === "failed" ? make("p", { class: "problem" }, chat.problem) : null];
}

function drawEvaluate() {
  const rows = make("input", { id: "evaluate-rows", spellcheck: "false", placeholder: "rows.json" });
  const metrics = make("input", { id: "evaluate-metrics", spellcheck: "false", placeholder: "exact, rouge-l-char" });
  const base = make("input", { id: "evaluate-base", type: "checkbox" }), again = make("input", { id: "evaluate-again", type: "checkbox" });
  const start = button(t("begin"), (event) => begun(event.target, "evaluate", {
    path: used, rows: rows.value.trim(), with_base: base.checked, overwrite: again.checked, metrics: metrics.value.split(",").map((each) => each.trim()).filter(Boolean),
  }), { id: "evaluate" });
  return make("details", { id: "use-evaluate" }, make("summary", {}, t("evaluate")), make("div", { class: "fields" }, labeled(t("evaluateRows"), rows), labeled(t("metrics"), metrics)),
    make("label", { class: "inline" }, base, t("withBase")), make("label", { class: "inline" }, again, t("overwrite")), make("div", { class: "buttons" }, start));
}

const FORMATS = ["merged", "glm", "lora-glm", "chatglm", "vllm", "gguf", "lora-gguf", "ollama"];

function drawExport() {
  const to = make("select", { id: "export-to" }, FORMATS.map((each) => make("option", { value: each }, each === "merged" ? t("merged") : each)));
  const output = make("input", { id: "export-output", spellcheck: "false", value: `${used}-merged` });
  const quantize = make("input", { id: "export-quantize", spellcheck: "false", placeholder: "q8_0" });
  const start = button(t("begin"), (event) => begun(event.target, "export", { path: used, to: to.value, output: output.value.trim(), quantize: quantize.value.trim() }), { id: "export" });
  return make("details", { id: "use-export" }, make("summary", {}, t("export")), make("div", { class: "fields" }, labeled(t("format_to"), to), labeled(t("newFolder"), output), labeled(t("quantize"), quantize)),
    make("div", { class: "buttons" }, start));
}

async function begun(from, name, body) {
  const job = await act(from, t("starting"), () => ask(name, body));
  if (job) await poll();
}

function drawLogs() {
  const place = find("jobs");
  if (!place) return;
  const own = jobs.filter((job) => job.target === used);
  const seen = JSON.stringify([own, own.map((job) => logs.get(job.id)?.log)]);
  if (place.dataset.seen === seen) return; // so that a log that is read keeps its place
  place.dataset.seen = seen;
  const open = new Set([...place.querySelectorAll("details[open]")].map((each) => each.id));
  place.replaceChildren(...(own.length ? [make("h3", {}, t("jobs"))] : []), ...own.map((job, index) => {
    const id = `job-${job.id}`;
    return make("details", { id, open: open.has(id) || (index === 0 && !open.size) },
      make("summary", {}, badge(job.state), " ", make("code", {}, job.command)),
      make("pre", { class: "log", tabindex: "0", "aria-label": t("log") }, logs.get(job.id)?.log || ""),
      job.state === "running" ? button(t("stop"), (event) => act(event.target, "", () => ask("stop-job", { id: job.id })).then(poll)) : null);
  }));
}
