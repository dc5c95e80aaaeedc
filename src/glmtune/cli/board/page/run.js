// The tab Run: one run while it trains and afterwards.
import { proofName, t } from "./texts.js";
import { act, ask, badge, button, bytes, copyButton, count, duration, find, make, number, repeat, say } from "./parts.js";
import { lineChart } from "./charts.js";

const RUNNING_MS = 1000, IDLE_MS = 5000;
let go = () => {};
let path = null;
let lines = [];        // of the metrics so far
let mark = "";         // which of them the board has sent
let seen = null;       // what the board said last
let isStopping = false;
let poll = async () => {};

export function begin({ show }) {
  go = show;
  poll = repeat(find("run"), update);
}

export async function show(what) {
  if (what?.path && what.path !== path) { path = what.path; lines = []; mark = ""; seen = null; }
  if (what?.path) isStopping = false;
  draw();
  await poll();
}

export function redraw() { draw(); }

async function update() {
  if (path === null) return 0;
  const asked = path;
  const found = await ask("run", { path, have: mark });
  if (asked !== path) return 1;
  const before = mark.split(":")[0];
  if (found.mark.split(":")[0] !== before || found.mark === "") lines = [];
  else if (Number(found.mark.split(":")[1]) < lines.length) lines = [];
  lines.push(...found.lines);
  mark = found.mark;
  seen = found;
  if (found.state !== "running") isStopping = false;
  draw();
  return found.state === "running" ? RUNNING_MS : IDLE_MS;
}

function draw() {
  const panel = find("run");
  if (path === null || seen === null) { panel.replaceChildren(make("p", { class: "card soft" }, path === null ? t("noRun") : t("working"))); return; }
  const focused = document.activeElement?.id;
  const scrolled = find("run-log")?.scrollTop;
  const wasAtEnd = !find("run-log") || find("run-log").scrollTop + find("run-log").clientHeight >= find("run-log").scrollHeight - 8;
  panel.replaceChildren(drawHead(), ...[drawCharts()].filter(Boolean), make("div", { class: "columns" }, drawProofs(), drawLog()), ...[drawRecipe()].filter(Boolean));
  const log = find("run-log");
  if (log) log.scrollTop = wasAtEnd ? log.scrollHeight : scrolled;
  if (focused) find(focused)?.focus({ preventScroll: true });
}

function drawHead() {
  const progress = seen.progress || { step: 0, num_steps: null, seconds_left: null };
  const isRunning = seen.state === "running", own = seen.job?.state === "running";
  const buttons = [];
  if (isRunning && own) {
    buttons.push(button(t("stop"), (event) => stop(event.target, false), { id: "stop-run", title: t("stopHelp"), disabled: isStopping }));
    if (isStopping) buttons.push(button(t("kill"), (event) => stop(event.target, true), { id: "kill-run" }));
  }
  if (!isRunning && seen.recipe && seen.state !== "finished") {
    buttons.push(button(t("resume"), (event) => act(event.target, t("starting"), () => ask("resume", { path })).then(poll), { class: "primary", id: "resume-run" }));
  }
  if (seen.is_usable) buttons.push(button(t("useIt"), () => go("runs", { path }), { id: "use-run" }));
  if (seen.has_report) buttons.push(make("a", { class: "button", href: `report/${encodePath(path)}`, target: "_blank", rel: "noopener" }, t("report")));
  if (seen.recipe && !seen.is_pretraining) buttons.push(button(t("edit"), () => go("recipe", { text: seen.recipe })));
  const last = (key) => [...lines].reverse().find((line) => typeof line[key] === "number")?.[key];
  const figures = [
    [t("step"), progress.num_steps ? `${count(progress.step)} / ${count(progress.num_steps)}` : count(progress.step)],
    [t("left"), isRunning ? duration(progress.seconds_left) : "–"], [t("loss"), number(last("loss"))], [t("heldOut"), number(last("eval_loss"))],
    [t("speed"), number(last("tokens_per_second"), 3)], [t("memory"), bytes(last("peak_memory_bytes"))],
  ];
  return make("div", { class: "card" },
    make("div", { class: "row-head" }, make("h2", { id: "run-title" }, path), make("span", { id: "run-state" }, badge(seen.state))),
    seen.title && seen.title !== path ? make("p", { class: "soft" }, seen.title) : null,
    seen.problem ? make("p", { class: "problem" }, seen.problem) : null,
    seen.process && !own ? make("p", { class: "soft" }, `${t("elsewhere")} ${seen.process}`) : null,
    progress.num_steps ? make("progress", { max: progress.num_steps, value: progress.step, "aria-label": t("step") }) : null,
    isRunning && !lines.length ? make("p", { class: "busy" }, t("waiting")) : null,
    make("dl", { class: "figures" }, figures.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("div", { class: "buttons" }, buttons));
}

export const encodePath = (text) => text.split("/").map(encodeURIComponent).join("/");

const points = (key) => lines.filter((line) => typeof line[key] === "number").map((line) => [line.step, line[key]]);

function drawCharts() {
  const charts = [
    lineChart(t("lossOf"), [{ name: t("loss"), points: points("loss") }, { name: t("heldOut"), points: points("eval_loss") }]),
    lineChart(t("lr"), [{ name: t("lr"), points: points("learning_rate") }]),
    lineChart(t("norm"), [{ name: t("norm"), points: points("grad_norm") }]),
    lineChart(t("speed"), [{ name: t("speed"), points: points("tokens_per_second") }]),
    lineChart(`${t("memory")} (GiB)`, [{ name: t("memory"), points: points("peak_memory_bytes").map(([x, y]) => [x, y / 2 ** 30]) }]),
  ].filter(Boolean);
  return charts.length ? make("div", { class: "card charts" }, charts) : null;
}

const SIGNS = { passed: "✓", failed: "✗", "not run": "–" };

function drawProofs() {
  const proofs = seen.proofs || [];
  return make("div", { class: "card", id: "proofs" }, make("h2", {}, t("proofs")),
    proofs.length ? make("ul", { class: "proofs" }, proofs.map((proof) => make("li", { class: proof.verdict.replace(" ", "-") },
      make("strong", {}, `${SIGNS[proof.verdict]} ${proofName(proof.name)}`), ` · ${t("verdicts")[proof.verdict]}`, proof.detail ? make("small", {}, proof.detail) : null)))
      : make("p", { class: "soft" }, t("noProofs")));
}

function drawLog() {
  const text = seen.log || "";
  return make("div", { class: "card wide" }, make("div", { class: "row-head" }, make("h2", {}, t("log")), text ? copyButton(() => text) : null),
    seen.job ? make("p", {}, make("code", {}, seen.job.command)) : null,
    text ? make("pre", { id: "run-log", class: "log", tabindex: "0", "aria-label": t("log") }, text) : make("p", { class: "soft" }, seen.job ? t("waiting") : t("noLog")));
}

function drawRecipe() {
  if (!seen.recipe) return null;
  return make("details", { class: "card", open: find("run-recipe")?.open, id: "run-recipe" }, make("summary", {}, t("recipeOf")), make("pre", { tabindex: "0" }, seen.recipe));
}

async function stop(from, atOnce) {
  const done = await act(from, t("stopping"), () => ask("stop", { path, at_once: atOnce }));
  if (done) { isStopping = true; say(t("stopping")); await poll(); }
}
