// The tab Data: files below the start folder, the rows of one, what lint finds, a row as tokens.
import { t } from "./texts.js";
import { act, ask, button, bytes, complain, count, find, labeled, make, say, table } from "./parts.js";
import { histogram } from "./charts.js";
import { useRows } from "./recipe.js";

let go = () => {};
let folder = "";
let chosen = null;        // the path of a file of rows
let first = 1;            // the number of the first row that is shown
let shown = null;         // the rows, as the board sent them
let report = null;        // of lint
let tokens = null;        // {number, sides}
let running = null;       // aborts the check
let options = { model: "", maxLength: "", columns: "" };

export function begin({ show }) { go = show; }

export async function show() {
  await list(folder);
  draw();
}

export function redraw() {
  if (!find("data").hidden) list(folder).catch(complain);
  draw();
}

async function list(path) {
  const found = await ask("files", { path });
  folder = found.path;
  const parts = folder ? folder.split("/") : [];
  const crumbs = [button(t("top"), () => list("").catch(complain), { class: "link" })];
  parts.forEach((part, index) => {
    crumbs.push(" / ", button(part, () => list(parts.slice(0, index + 1).join("/")).catch(complain), { class: "link" }));
  });
  find("place").replaceChildren(...crumbs);
  const under = (name) => (folder ? `${folder}/${name}` : name);
  const folders = found.folders.map((name) => make("li", {}, button(`${name}/`, () => list(under(name)).catch(complain))));
  const files = found.files.map(({ name, bytes: size }) => make("li", { "aria-current": under(name) === chosen ? "true" : null },
    button(name, () => choose(under(name))), make("small", {}, bytes(size))));
  const none = folders.length + files.length ? null : make("li", { class: "soft" }, t("empty"));
  const cut = found.is_cut ? make("li", { class: "soft" }, t("cut")) : null;
  find("entries").replaceChildren(...[...folders, ...files, none, cut].filter(Boolean));
}

async function choose(path) {
  if (/\.ya?ml$/.test(path)) { await go("recipe", { path }); return; }
  chosen = path;
  first = 1;
  shown = report = tokens = null;
  await act(null, "", look);
  await list(folder).catch(complain);
}

async function look() {
  shown = await ask("look", { path: chosen, first });
  draw();
}

/** What says how the rows are read. */
function source() {
  const length = parseInt(options.maxLength, 10);
  return { path: chosen, model: options.model.trim(), max_length: length > 0 ? length : null, columns: columns() };
}

function columns() {
  if (!options.columns.trim()) return {};
  try {
    const found = JSON.parse(options.columns);
    if (found && !Array.isArray(found) && Object.values(found).every((each) => typeof each === "string")) return found;
  } catch { /* said below */ }
  throw new Error(t("columnsBad"));
}

function draw() {
  if (chosen === null) { find("file").replaceChildren(make("p", { class: "card soft" }, t("chooseFile"))); return; }
  const model = make("input", { id: "data-model", value: options.model, list: "models", placeholder: "nano", oninput: (e) => { options.model = e.target.value; } });
  const length = make("input", { id: "data-max-length", type: "number", min: 1, value: options.maxLength, oninput: (e) => { options.maxLength = e.target.value; } });
  const names = make("input", { id: "data-columns", value: options.columns, spellcheck: "false", placeholder: '{"instruction": "question"}', oninput: (e) => { options.columns = e.target.value; } });
  const check = button(t("check"), lint, { class: "primary", id: "check-rows" });
  const use = button(t("use"), (event) => act(event.target, "", async () => { useRows(chosen, options.model.trim(), columns()); await go("recipe"); }), { id: "use-rows" });
  const head = make("div", { class: "card" },
    make("h2", {}, chosen),
    make("div", { class: "fields" }, labeled(t("model"), model, t("modelHelp")), labeled(t("maxLength"), length), labeled(t("columns"), names, t("columnsHelp"))),
    make("div", { class: "buttons" }, check, use));
  find("file").replaceChildren(...[head, drawTokens(), drawReport(), drawRows()].filter(Boolean));
}

function drawRows() {
  if (shown === null) return null;
  const rows = shown.rows.map((row, index) => {
    const number = first + index;
    return make("li", { class: row.is_row ? "" : "bad" },
      make("div", { class: "row-head" }, make("small", {}, `${number} · ${t("line")} ${row.line}`),
        row.is_row ? button(t("tokens"), (event) => showTokens(number, event.target), { class: "small", "aria-label": `${t("tokens")}: ${t("row")} ${number}` })
          : make("strong", {}, t("unusable"))),
      make("pre", {}, pretty(row.text)));
  });
  const turn = (step) => () => { first = Math.max(1, first + step); return act(null, "", look); };
  return make("div", { class: "card" }, make("h2", {}, t("rows")), make("ol", { class: "rows" }, ...rows),
    make("div", { class: "buttons" }, button(t("back"), turn(-20), { disabled: first === 1 }), button(t("more"), turn(20), { disabled: !shown.has_more })));
}

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 1).replace(/^\{\n|\n\}$/g, ""); } catch { return text; }
}

async function showTokens(number, from) {
  await act(from, "", async () => {
    tokens = { number, sides: await ask("row", { ...source(), first: number }) };
    draw();
    find("tokens").focus();
  });
}

function drawTokens() {
  if (tokens === null) return null;
  const sides = tokens.sides.map((side) => make("div", {},
    make("p", { class: "soft" }, `${side.place} · ${side.format} · ${count(side.tokens)} ${t("ofTokens")}, ${count(side.learned)} ${t("learned")}`),
    side.fate ? make("p", { class: "problem" }, side.fate) : null,
    make("p", { class: "pieces" }, side.pieces.flatMap(piece))));
  return make("div", { class: "card", id: "tokens", tabindex: "-1" },
    make("div", { class: "row-head" }, make("h2", {}, `${t("tokensOf")}: ${t("row")} ${tokens.number}`),
      button(t("close"), () => { tokens = null; draw(); }, { class: "small" })),
    make("p", { class: "soft" }, make("span", { class: "piece learned" }, t("learned")), " ", make("span", { class: "piece special" }, "<|…|>")),
    ...sides);
}

function piece({ text, ids, learned, special }) {
  const visible = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";
  const made = make("span", { class: `piece${learned ? " learned" : ""}${special ? " special" : ""}`, title: ids.join(" ") }, visible);
  return text.endsWith("\n") ? [made, make("br")] : [made];
}

async function lint(event) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  await act(event.target, t("checking"), async () => {
    report = await ask("lint", source(), signal);
    draw();
  });
}

function drawReport() {
  if (report === null) return null;
  const counts = report.checks.filter((check) => check.error + check.warning + check.info);
  const formats = [...new Set(Object.values(report.formats))].join(", ") || t("unknown");
  const summary = `${count(report.rows)} ${t("numRows")} · ${t("format")}: ${formats} · ${count(report.errors)} ${t("errors")}, ${count(report.warnings)} ${t("warnings")}, ${count(report.infos)} ${t("infos")}`;
  const groups = counts.map((check) => make("details", { open: check.error > 0 },
    make("summary", {}, make("strong", {}, check.id), ` ${count(check.error + check.warning + check.info)} · ${check.meaning}`),
    make("p", { class: "soft" }, check.remedy),
    make("ul", { class: "findings" }, (report.findings[check.id] || []).map(finding))));
  const skipped = Object.entries(report.not_checked);
  return make("div", { class: "card", id: "report" },
    make("h2", {}, t("found")), make("p", { id: "report-summary" }, summary),
    report.notes.map((note) => make("p", { class: "soft" }, note)),
    counts.length ? groups : make("p", {}, t("clean")),
    skipped.length ? make("p", { class: "soft" }, `${t("notChecked")}: ${skipped.map(([id, why]) => `${id} (${why})`).join(", ")}`) : null,
    drawLengths(report.lengths), drawFix());
}

function finding(each) {
  const show = each.is_held_out ? null : button(t("showRow"), () => { first = each.row; return act(null, "", look); }, { class: "small", "aria-label": `${t("showRow")}: ${t("row")} ${each.row}` });
  return make("li", { class: each.severity }, make("div", { class: "row-head" }, make("span", {}, `${t("line")} ${each.line}: ${each.message}${each.other ? ` (${t("otherRow")}: ${each.other.split("/").pop()})` : ""}`), show),
    each.excerpt ? make("pre", {}, each.excerpt) : null);
}

function drawLengths(lengths) {
  if (!lengths.rows || !lengths.histogram.length) return null;
  const bars = lengths.histogram.map(([longest, value]) => ({ label: count(longest), value }));
  const shares = Object.entries(lengths.percentiles).map(([share, length]) => [`${share} %`, count(length)]);
  return make("div", {}, histogram(`${t("lengths")} (${t("units")[lengths.unit]})`, bars),
    table([t("rowsUpTo"), `${t("atMost")} ${t("units")[lengths.unit]}`], shares, t("lengths")));
}

function drawFix() {
  const name = chosen.replace(/(\.[a-z]+)?$/i, ".clean.jsonl");
  const output = make("input", { id: "fix-name", value: name });
  const write = button(t("fix"), (event) => act(event.target, t("working"), async () => {
    const done = await ask("fix", { ...source(), output: output.value.trim() });
    await list(folder);
    return done;
  }).then((done) => done && say(done.message)), { id: "fix-rows" });
  return make("div", {}, make("h3", {}, t("fix")), make("p", { class: "soft" }, t("fixHelp")), labeled(t("newFile"), output), make("div", { class: "buttons" }, write));
}
