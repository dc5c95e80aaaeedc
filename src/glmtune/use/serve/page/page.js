// The chat page: one file without libraries. Everything a model writes becomes text nodes, never
// HTML, and every request goes to the server that the page came from.
"use strict";

const TEXTS = {
  en: {
    skip: "Skip to the question", menu: "Menu", model: "Model", beside: "Beside", none: "none",
    side: "Conversations and settings", newChat: "New chat", history: "Conversations",
    settings: "Settings", system: "System prompt", tools: "Tools (JSON)", temperature: "Temperature",
    maxTokens: "Max. tokens", seed: "Seed", key: "API key", log: "Conversation", question: "Question",
    send: "Send", stop: "Stop", cancel: "Cancel", copy: "Copy", copied: "Copied", edit: "Edit",
    retry: "Retry", remove: "Delete", you: "You", tool: "Result of the tool", calls: "calls",
    answerTool: "Send result", empty: "Ask something. Enter sends, Shift+Enter breaks the line, Esc stops.",
    writing: "Answering…", done: "Answered.", stopped: "Stopped.", speed: "tokens/s", tokens: "tokens",
    cut: "cut at the limit", toolsBad: "The tools are not a JSON list: ", untitled: "New chat",
    unreachable: "The server does not answer. Is it still running?", full: "The browser's storage is full: old conversations were deleted.",
  },
  zh: {
    skip: "跳到输入框", menu: "菜单", model: "模型", beside: "对比", none: "无",
    side: "对话与设置", newChat: "新对话", history: "历史对话",
    settings: "设置", system: "系统提示词", tools: "工具（JSON）", temperature: "温度",
    maxTokens: "最大词元数", seed: "随机种子", key: "API 密钥", log: "对话内容", question: "问题",
    send: "发送", stop: "停止", cancel: "取消", copy: "复制", copied: "已复制", edit: "编辑",
    retry: "重试", remove: "删除", you: "你", tool: "工具结果", calls: "调用",
    answerTool: "提交结果", empty: "请输入问题。回车发送，Shift+回车换行，Esc 停止。",
    writing: "正在回答……", done: "回答完毕。", stopped: "已停止。", speed: "词元/秒", tokens: "词元",
    cut: "达到长度上限", toolsBad: "工具不是 JSON 列表：", untitled: "新对话",
    unreachable: "服务器没有响应，是否仍在运行？", full: "浏览器存储已满，较早的对话已删除。",
  },
};
const STORE = "glmtune.chats", CHOICES = "glmtune.choices", MAX_CHATS = 50;
const SETTINGS = ["system", "tools", "temperature", "top-p", "max-tokens", "seed"];
const find = (id) => document.getElementById(id);

let choices = read(CHOICES, {});
let language = choices.language || ((navigator.language || "").startsWith("zh") ? "zh" : "en");
let chats = read(STORE, []).filter((each) => each && Array.isArray(each.turns));
let chat = newChat();
let abort = null;     // stops the answers that are being written
let editing = null;   // the index of the question that is edited
const t = (name) => TEXTS[language][name];

function read(name, otherwise) {
  try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
}

function save() {
  if (chat.turns.length && !chats.includes(chat)) chats.unshift(chat);
  chats = chats.slice(0, MAX_CHATS);
  for (;;) {
    try { localStorage.setItem(STORE, JSON.stringify(chats)); break; } catch {
      if (chats.length < 2) break;
      chats.pop();
      say(t("full"));
    }
  }
  showChats();
}

function keepChoices() {
  choices = { language, model: find("model").value, beside: find("beside").value };
  try { localStorage.setItem(CHOICES, JSON.stringify(choices)); } catch { /* a private window */ }
}

function newChat() {
  return { turns: [], settings: {} };
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function say(text) { find("status").textContent = text; }

// ---- markdown, as elements and text nodes only ---------------------------------------------

function markdown(text) {
  const result = document.createDocumentFragment();
  const lines = text.split("\n");
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) result.append(make("p", {}, ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i];
    const fence = line.match(/^\s*(```+|~~~+)\s*(\S*)/);
    if (fence) {
      flush();
      const code = [];
      while (++i < lines.length && !lines[i].trim().startsWith(fence[1])) code.push(lines[i]);
      result.append(make("pre", { tabindex: "0" }, make("code", {}, code.join("\n"))));
    } else if (/^\s*\|.*\|\s*$/.test(line) && /^\s*\|[\s:|-]+\|\s*$/.test(lines[i + 1] || "")) {
      flush();
      const rows = [line];
      i++;
      while (/^\s*\|.*\|\s*$/.test(lines[i + 1] || "")) rows.push(lines[++i]);
      result.append(table(rows));
    } else if (/^\s*([-*+]|\d+[.)])\s+/.test(line)) {
      flush();
      const isOrdered = /^\s*\d/.test(line), items = [];
      const start = isOrdered ? parseInt(line, 10) : null;
      for (; i < lines.length && /^\s*([-*+]|\d+[.)])\s+/.test(lines[i]); i++) {
        items.push(make("li", {}, ...inline(lines[i].replace(/^\s*([-*+]|\d+[.)])\s+/, ""))));
      }
      i--;
      result.append(make(isOrdered ? "ol" : "ul", { start }, ...items));
    } else if (/^#{1,6}\s/.test(line)) {
      flush();
      result.append(make(line.startsWith("###") ? "h4" : "h3", {}, ...inline(line.replace(/^#+\s+/, ""))));
    } else if (/^>\s?/.test(line)) {
      flush();
      const quoted = [];
      for (; i < lines.length && /^>\s?/.test(lines[i]); i++) quoted.push(lines[i].replace(/^>\s?/, ""));
      i--;
      result.append(make("blockquote", {}, ...inline(quoted.join("\n"))));
    } else if (!line.trim()) flush();
    else paragraph.push(line);
  }
  flush();
  return result;
}

function table(rows) {
  const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const line = (row, tag) => make("tr", {}, ...cells(row).map((cell) => make(tag, {}, ...inline(cell))));
  const head = make("thead", {}, line(rows[0], "th"));
  const body = make("tbody", {}, ...rows.slice(1).map((row) => line(row, "td")));
  return make("div", { class: "scroll", tabindex: "0" }, make("table", {}, head, body));
}

const INLINE = /(`+)([\s\S]+?)\1|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)|\n/;

function inline(text) {
  const parts = [];
  for (let match; (match = INLINE.exec(text)); ) {
    if (match.index) parts.push(text.slice(0, match.index));
    if (match[1]) parts.push(make("code", {}, match[2]));
    else if (match[3]) parts.push(make("strong", {}, match[3]));
    else if (match[4]) parts.push(make("em", {}, match[4]));
    else if (match[5]) {
      const link = { href: match[6], target: "_blank", rel: "noopener noreferrer nofollow" };
      parts.push(make("a", link, match[5]), ` (${match[6]})`);
    } else parts.push(make("br"));
    text = text.slice(match.index + match[0].length);
  }
  if (text) parts.push(text);
  return parts;
}

// ---- what is shown --------------------------------------------------------------------------

function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const each of document.querySelectorAll("[data-text]")) each.textContent = t(each.dataset.text);
  for (const each of document.querySelectorAll("[data-label]")) each.setAttribute("aria-label", t(each.dataset.label));
  find("language").textContent = language === "zh" ? "English" : "中文";
  find("language").lang = language === "zh" ? "en" : "zh-CN";
  const none = find("beside").querySelector('option[value=""]');
  if (none) none.textContent = t("none");
  showChats();
  showLog();
}

function showChats() {
  find("chats").replaceChildren(...chats.map((each) => {
    const title = each.turns[0]?.content?.slice(0, 40) || t("untitled");
    const open = make("button", { type: "button", title, onclick: () => openChat(each) }, title);
    const remove = make("button", { type: "button", "aria-label": `${t("remove")}: ${title}`, onclick: () => removeChat(each) }, "×");
    return make("li", { "aria-current": each === chat ? "true" : null }, open, remove);
  }));
}

function showLog() {
  const turns = chat.turns.map((turn, index) => showTurn(turn, index));
  find("log").replaceChildren(...(turns.length ? turns : [make("p", { class: "empty" }, t("empty"))]));
  find("log").scrollTop = find("log").scrollHeight;
}

function showTurn(turn, index) {
  if (turn.role !== "assistant") {
    const who = turn.role === "tool" ? t("tool") : t("you");
    const edit = turn.role === "user" ? button("edit", () => startEdit(index)) : null;
    const tail = make("div", { class: "tail" }, copyButton(() => turn.content), edit);
    const bubble = make("div", { class: "bubble" }, turn.content);
    return make("div", { class: "turn user" }, make("span", { class: "who" }, who), bubble, tail);
  }
  const isLast = index === chat.turns.length - 1;
  const columns = turn.answers.map((answer) => showAnswer(answer, isLast));
  return make("div", { class: `turn answers${columns.length > 1 ? " two" : ""}` }, ...columns);
}

function showAnswer(answer, isLast) {
  const bubble = make("div", { class: "bubble" });
  answer.element = null;
  const column = make("section", { "aria-label": answer.model }, make("div", { class: "who" }, answer.model), bubble);
  fillBubble(bubble, answer);
  const stats = make("span", { class: "stats" }, describe(answer));
  const tail = make("div", { class: "tail" }, stats, copyButton(() => answer.content || callText(answer)));
  if (isLast && !abort) tail.append(button("retry", retry));
  column.append(tail);
  if (isLast && !abort && answer.calls?.length) column.append(toolForm(answer));
  Object.defineProperty(answer, "view", { value: { bubble, stats }, enumerable: false, configurable: true });
  return column;
}

function fillBubble(bubble, answer) {
  const parts = [];
  if (answer.content) parts.push(markdown(answer.content));
  for (const call of answer.calls || []) {
    parts.push(make("p", {}, `${t("calls")} `, make("code", {}, call.function.name)));
    parts.push(make("pre", { tabindex: "0" }, make("code", {}, call.function.arguments)));
  }
  if (answer.problem) parts.push(make("p", { class: "problem", role: "alert" }, answer.problem));
  if (!parts.length) parts.push(abort ? "…" : "");
  bubble.replaceChildren(...parts);
}

function describe(answer) {
  const parts = [];
  if (answer.tokens) parts.push(`${answer.tokens} ${t("tokens")}`);
  if (answer.speed) parts.push(`${answer.speed.toFixed(1)} ${t("speed")}`);
  if (answer.finish === "length") parts.push(t("cut"));
  return parts.join(" · ");
}

const callText = (answer) => (answer.calls || []).map((call) => `${call.function.name} ${call.function.arguments}`).join("\n");

function button(name, action) {
  return make("button", { type: "button", onclick: action }, t(name));
}

function copyButton(text) {
  const copy = button("copy", async () => {
    try { await navigator.clipboard.writeText(text()); } catch {  // not a secure origin
      const area = make("textarea", {}, text());
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    copy.textContent = t("copied");
    setTimeout(() => { copy.textContent = t("copy"); }, 1500);
  });
  return copy;
}

function toolForm(answer) {
  const call = answer.calls[0];
  const input = make("textarea", { rows: "2", spellcheck: "false" });
  const send = (event) => {
    event.preventDefault();
    chat.turns.push({ role: "tool", content: input.value, id: call.id });
    run();
  };
  const label = make("label", {}, make("span", { class: "who" }, `${t("tool")}: ${call.function.name}`), input);
  return make("form", { class: "tool-result", onsubmit: send }, label, make("button", { class: "primary" }, t("answerTool")));
}

// ---- what is asked --------------------------------------------------------------------------

function headers() {
  const key = find("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function messagesFor(column) {
  const messages = [];
  const system = find("system").value.trim();
  if (system) messages.push({ role: "system", content: system });
  for (const turn of chat.turns) {
    if (turn.role === "user") messages.push({ role: "user", content: turn.content });
    else if (turn.role === "tool") messages.push({ role: "tool", content: turn.content, tool_call_id: turn.id });
    else {
      const answer = turn.answers[column] || turn.answers[0];
      if (answer.problem && !answer.content) {  // it was never answered
        messages.pop();
        continue;
      }
      const calls = answer.calls?.length ? { tool_calls: answer.calls } : {};
      messages.push({ role: "assistant", content: answer.content || "", ...calls });
    }
  }
  return messages;
}

function readTools() {
  const text = find("tools").value.trim();
  find("tools-problem").textContent = "";
  if (!text) return [];
  try {
    const tools = JSON.parse(text);
    if (!Array.isArray(tools)) throw new Error(typeof tools);
    return tools.map((tool) => (tool.function ? tool : { type: "function", function: tool }));
  } catch (error) {
    find("tools-problem").textContent = t("toolsBad") + error.message;
    find("settings").open = true;
    return null;
  }
}

function bodyFor(model, column, tools) {
  const body = { model, messages: messagesFor(column), stream: true, stream_options: { include_usage: true } };
  if (tools.length) body.tools = tools;
  body.max_tokens = Number(find("max-tokens").value) || 512;
  for (const [id, name] of [["temperature", "temperature"], ["top-p", "top_p"], ["seed", "seed"]]) {
    if (find(id).value !== "") body[name] = Number(find(id).value);
  }
  return body;
}

async function run() {
  const tools = readTools();
  if (tools === null || abort) return;
  const models = [find("model").value, find("beside").value].filter((name, i, all) => name && all.indexOf(name) === i);
  const answers = models.map((model) => ({ model, content: "", calls: [] }));
  const bodies = models.map((model, column) => bodyFor(model, column, tools));
  chat.settings = Object.fromEntries(SETTINGS.map((id) => [id, find(id).value]));
  chat.turns.push({ role: "assistant", answers });
  abort = new AbortController();
  setBusy(true);
  showLog();
  say(t("writing"));
  await Promise.all(answers.map((answer, column) => stream(bodies[column], answer, abort.signal)));
  const wasStopped = abort.signal.aborted;
  abort = null;
  setBusy(false);
  save();
  showLog();
  say(wasStopped ? t("stopped") : answers.some((answer) => answer.problem) ? "" : t("done"));
}

async function stream(body, answer, signal) {
  let firstAt = 0;
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
    if (!response.ok) throw new Error(await problemOf(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice?.delta.content) {
        firstAt ||= performance.now();
        answer.content += choice.delta.content;
      }
      if (choice?.delta.tool_calls) answer.calls.push(...choice.delta.tool_calls.map(({ index, ...call }) => call));
      if (choice?.finish_reason) answer.finish = choice.finish_reason;
      if (event.usage) {
        answer.tokens = event.usage.completion_tokens;
        const seconds = (performance.now() - firstAt) / 1000;
        if (firstAt && seconds > 0 && answer.tokens > 1) answer.speed = (answer.tokens - 1) / seconds;
      }
      refresh(answer);
    }
  } catch (error) {
    if (!signal.aborted) answer.problem = error instanceof TypeError ? t("unreachable") : error.message;
    refresh(answer);
  }
}

async function problemOf(response) {
  try { return (await response.json()).error.message; } catch { return `${response.status} ${response.statusText}`; }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function refresh(answer) {
  if (answer.isDrawn || !answer.view) return;  // at most once a frame
  Object.defineProperty(answer, "isDrawn", { value: true, enumerable: false, configurable: true, writable: true });
  requestAnimationFrame(() => {
    answer.isDrawn = false;
    const log = find("log");
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    fillBubble(answer.view.bubble, answer);
    answer.view.stats.textContent = describe(answer);
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  });
}

function setBusy(isBusy) {
  find("stop").hidden = !isBusy;
  find("send").disabled = isBusy;
  find("log").setAttribute("aria-busy", String(isBusy));
}

// ---- what is done ---------------------------------------------------------------------------

function send(event) {
  event?.preventDefault();
  const text = find("question").value;
  if (!text.trim() || abort) return;
  if (readTools() === null) return;
  if (editing !== null) chat.turns.length = editing;
  endEdit();
  find("question").value = "";
  chat.turns.push({ role: "user", content: text });
  run();
}

function retry() {
  if (abort || chat.turns.at(-1)?.role !== "assistant") return;
  chat.turns.pop();
  run();
}

function startEdit(index) {
  if (abort) return;
  editing = index;
  find("question").value = chat.turns[index].content;
  find("cancel-edit").hidden = false;
  find("question").focus();
}

function endEdit() {
  editing = null;
  find("cancel-edit").hidden = true;
}

function openChat(other) {
  if (abort) abort.abort();
  chat = other;
  for (const id of SETTINGS) find(id).value = chat.settings?.[id] ?? "";
  endEdit();
  toggleSide(false);
  showChats();
  showLog();
  find("question").focus();
}

function removeChat(other) {
  chats = chats.filter((each) => each !== other);
  if (other === chat) { chat = newChat(); showLog(); }
  save();
}

function toggleSide(isOpen) {
  find("side").classList.toggle("open", isOpen);
  find("show-side").setAttribute("aria-expanded", String(isOpen));
}

async function loadModels() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await problemOf(response));
    const names = (await response.json()).data.map((model) => model.id);
    const options = () => names.map((name) => make("option", { value: name }, name));
    find("model").replaceChildren(...options());
    find("beside").replaceChildren(make("option", { value: "" }, t("none")), ...options());
    find("model").value = names.includes(choices.model) ? choices.model : names.at(-1);
    find("beside").value = names.includes(choices.beside) ? choices.beside : "";
    say("");
  } catch (error) {
    say(error instanceof TypeError ? t("unreachable") : error.message);
    find("settings").open = true;
  }
}

find("composer").addEventListener("submit", send);
find("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (abort) abort.abort();
  else if (editing !== null) { endEdit(); find("question").value = ""; }
  else toggleSide(false);
});
document.addEventListener("click", (event) => {
  const isOutside = !find("side").contains(event.target) && event.target !== find("show-side");
  if (isOutside && find("side").classList.contains("open")) toggleSide(false);
});
find("stop").addEventListener("click", () => abort?.abort());
find("cancel-edit").addEventListener("click", () => { endEdit(); find("question").value = ""; });
find("new-chat").addEventListener("click", () => openChat(newChat()));
find("show-side").addEventListener("click", () => toggleSide(!find("side").classList.contains("open")));
find("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  keepChoices();
  translate();
});
find("model").addEventListener("change", keepChoices);
find("beside").addEventListener("change", keepChoices);
find("key-form").addEventListener("submit", (event) => event.preventDefault());
find("key").addEventListener("change", loadModels);
find("tools").addEventListener("change", readTools);
translate();
loadModels();
