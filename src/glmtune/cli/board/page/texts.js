// What the page says, in English and Chinese. What commands say comes from them, in English.
const TEXTS = {
  en: {
    title: "glmtune board", skip: "Skip to the content", tabs: "Parts of the board", data: "Data", recipe: "Recipe", run: "Run", runs: "Runs",
    key: "Key", enter: "Enter", unreachable: "The board does not answer. Is it still running?", wrongKey: "The key is wrong.",
    copy: "Copy", copied: "Copied", working: "Working…", done: "Done.", close: "Close",
    // data
    files: "Files", place: "Folder", top: "Start folder", empty: "This folder is empty.", cut: "Only the first entries are shown.",
    chooseFile: "Choose a file of rows on the left. A .yaml file opens as a recipe.", rows: "Rows", numRows: "rows", row: "Row", line: "line", back: "Back", more: "More",
    tokens: "Tokens", tokensOf: "As training sees it", learned: "learned", ofTokens: "tokens", unusable: "cannot be used",
    model: "Model", modelHelp: "Its tokenizer measures the rows: a folder, a hub id, or nano.", maxLength: "Max. tokens",
    columns: "Columns", columnsHelp: "If the names are others: our field, their column.", columnsBad: "The columns are not a JSON object of names.", check: "Check rows", use: "Use in the recipe", checking: "Checking the rows…", found: "Findings", clean: "Nothing found.",
    notChecked: "Not checked", errors: "errors", warnings: "warnings", infos: "notes", format: "Format", unknown: "unknown",
    lengths: "Lengths", units: { tokens: "tokens", characters: "characters" }, lossOf: "Loss", rowsUpTo: "Share of the rows", atMost: "has at most, in", fix: "Write a clean copy",
    fixHelp: "Without unusable rows, duplicates, empty answers and rows in which nothing is learned. The file itself is not changed.",
    newFile: "New file", showRow: "Show", otherRow: "other row",
    // recipe
    verdict: "Verdict", start: "Start from", open: "Open", openFile: "Recipe file", save: "Save", saved: "Saved as",
    replace: "It exists already. Replace it?", paste: "Paste YAML", apply: "Apply", suggest: "Fit to the rows",
    suggesting: "Reading the model's configuration and the rows…", advanced: "More keys", default: "default", none: "none",
    on: "on", off: "off", onePerLine: "one a line", asJson: "as JSON", required: "needed",
    sections: { model: "Model", data: "Data", adapter: "Method", training: "Training", checks: "Checks", output: "Output", preference: "Preference", lint: "Lint" },
    problems: "Not a recipe yet", planning: "Estimating memory and time…", fits: "fits", fitsNot: "does not fit", needed: "needed", free: "free",
    changes: "What would make it fit", notEnough: "That is not enough: use a smaller model or a larger machine.", time: "Time", steps: "steps", about: "about",
    timeUnknown: "not measured, since it does not fit here", rowsUnknown: "The rows are not known: all packs are assumed to be full.", planFailed: "It cannot be planned",
    thisMachine: "this machine", device: "Other memory", command: "Command", yaml: "YAML", train: "Start training", processes: "GPUs", starting: "Starting…",
    // run
    noRun: "No run is chosen. Start one in Recipe, or choose one in Runs.", stop: "Stop", stopHelp: "Stops as Ctrl-C does, and saves a checkpoint.", stopping: "Stopping, a checkpoint is being saved…",
    kill: "Stop at once", resume: "Resume", states: { running: "running", finished: "finished", stopped: "stopped", failed: "failed", succeeded: "finished", lost: "lost" },
    step: "Step", left: "Time left", loss: "Training loss", heldOut: "Held-out loss", lr: "Learning rate", norm: "Gradient norm", speed: "Tokens per second", memory: "Peak memory",
    proofs: "Proofs", verdicts: { passed: "passed", failed: "failed", "not run": "not run" }, noProofs: "They come at the end of the run.", log: "Log", noLog: "The run was not started here, so its log is where it was started.",
    elsewhere: "Started elsewhere, as process", waiting: "Loading the model and the rows…", report: "Report", recipeOf: "Recipe", edit: "Edit as a new recipe", chartOf: "over the steps",
    proofNames: {},
    // runs
    noRuns: "There are no runs below this folder yet.", name: "Run", state: "State", date: "Ended", select: "Select", watch: "Watch", useIt: "Use", compare: "Compare selected",
    compareHelp: "Select at least two runs.", differs: "Only what differs", same: "The runs do not differ in anything that was recorded.", chat: "Chat", chatLoading: "Loading the model…", chatOpen: "Open the chat", chatClose: "Unload the model",
    evaluate: "Evaluate", evaluateRows: "Rows with answers", metrics: "Metrics", withBase: "Compare with the base", overwrite: "Replace an earlier result",
    export: "Merge or export", format_to: "Format", merged: "merged: a complete model", newFolder: "New folder", quantize: "Quantize", begin: "Begin", jobs: "Started here", nothingMade: "The run has left nothing to use yet.",
  },
  zh: {
    title: "glmtune 看板", skip: "跳到内容", tabs: "看板各部分", data: "数据", recipe: "配方", run: "运行", runs: "全部运行",
    key: "密钥", enter: "进入", unreachable: "看板没有响应，是否仍在运行？", wrongKey: "密钥不正确。",
    copy: "复制", copied: "已复制", working: "处理中……", done: "完成。", close: "关闭",
    files: "文件", place: "文件夹", top: "起始文件夹", empty: "此文件夹为空。", cut: "只显示前面的条目。",
    chooseFile: "请在左侧选择数据文件。.yaml 文件会作为配方打开。", rows: "数据行", numRows: "行", row: "第", line: "行号", back: "上一页", more: "下一页",
    tokens: "词元", tokensOf: "训练所见", learned: "参与学习", ofTokens: "个词元", unusable: "不可用",
    model: "模型", modelHelp: "用它的分词器度量数据：文件夹、模型库 ID 或 nano。", maxLength: "最大词元数",
    columns: "字段对应", columnsHelp: "列名不同时使用：我们的字段对应文件的列。", columnsBad: "字段对应不是由名称组成的 JSON 对象。", check: "检查数据", use: "用于配方", checking: "正在检查数据……", found: "检查结果", clean: "没有发现问题。",
    notChecked: "未检查", errors: "错误", warnings: "警告", infos: "提示", format: "格式", unknown: "未知",
    lengths: "长度分布", units: { tokens: "词元", characters: "字符" }, lossOf: "损失", rowsUpTo: "占全部行的比例", atMost: "长度不超过，单位", fix: "写出清理后的副本",
    fixHelp: "去掉不可用的行、重复行、空回答和没有可学内容的行。原文件不变。",
    newFile: "新文件", showRow: "查看", otherRow: "另一行",
    verdict: "评估", start: "起点", open: "打开", openFile: "配方文件", save: "保存", saved: "已保存为",
    replace: "文件已存在，要替换吗？", paste: "粘贴 YAML", apply: "应用", suggest: "按数据推荐",
    suggesting: "正在读取模型配置和数据……", advanced: "更多选项", default: "默认", none: "无",
    on: "开", off: "关", onePerLine: "每行一个", asJson: "JSON 格式", required: "必填",
    sections: { model: "模型", data: "数据", adapter: "方法", training: "训练", checks: "检查项", output: "输出", preference: "偏好", lint: "数据检查" },
    problems: "配方尚不完整", planning: "正在估算内存和时间……", fits: "放得下", fitsNot: "放不下", needed: "需要", free: "可用",
    changes: "怎样才放得下", notEnough: "仍然不够：请换更小的模型或更大的机器。", time: "时间", steps: "步", about: "约",
    timeUnknown: "未测量，因为本机放不下", rowsUnknown: "数据未知：假定每个数据包都是满的。", planFailed: "无法估算",
    thisMachine: "本机", device: "其他显存", command: "命令", yaml: "YAML", train: "开始训练", processes: "GPU 数", starting: "正在启动……",
    noRun: "尚未选择运行。请在“配方”中启动，或在“全部运行”中选择。", stop: "停止", stopHelp: "与 Ctrl-C 相同，会保存检查点。", stopping: "正在停止并保存检查点……",
    kill: "立即终止", resume: "继续", states: { running: "运行中", finished: "已完成", stopped: "已停止", failed: "失败", succeeded: "已完成", lost: "已中断" },
    step: "步", left: "剩余时间", loss: "训练损失", heldOut: "验证损失", lr: "学习率", norm: "梯度范数", speed: "每秒词元数", memory: "内存峰值",
    proofs: "证明", verdicts: { passed: "通过", failed: "未通过", "not run": "未执行" }, noProofs: "将在运行结束时给出。", log: "日志", noLog: "此运行不是在这里启动的，日志在启动它的地方。",
    elsewhere: "在别处启动，进程号", waiting: "正在加载模型和数据……", report: "报告", recipeOf: "配方", edit: "作为新配方编辑", chartOf: "随步数变化",
    proofNames: {
      "training scores a row as answering does": "训练与回答时对同一行的打分一致",
      "all that is trained has learned": "所有可训练参数都学到了",
      "reloaded from disk it is the same": "从磁盘重新加载后完全一致",
      "streamed from disk it answers the same": "从磁盘流式读取后回答一致",
      "merged into the base it answers the same": "合并进基座后回答一致",
      "chat asks as training did": "对话与训练的提示一致",
      "stock transformers asks the same": "原版 transformers 的提示一致",
      "answers end by themselves": "回答能自行结束",
      "what the base knew is still there": "基座原有的知识没有丢失",
    },
    noRuns: "此文件夹下还没有运行。", name: "运行", state: "状态", date: "结束时间", select: "选择", watch: "查看", useIt: "使用", compare: "比较所选",
    compareHelp: "请至少选择两个运行。", differs: "只看不同之处", same: "记录中没有不同之处。", chat: "对话", chatLoading: "正在加载模型……", chatOpen: "打开对话", chatClose: "卸载模型",
    evaluate: "评估", evaluateRows: "带答案的数据", metrics: "指标", withBase: "与基座比较", overwrite: "替换先前的结果",
    export: "合并或导出", format_to: "格式", merged: "merged：完整模型", newFolder: "新文件夹", quantize: "量化", begin: "开始", jobs: "在此启动的任务", nothingMade: "此运行尚无可用的结果。",
  },
};
const STORE = "glmtune.board.language";

function remembered() {
  try { return localStorage.getItem(STORE); } catch { return null; } // a private window
}

let language = remembered() || ((navigator.language || "").startsWith("zh") ? "zh" : "en");

/** The text of a name, in the chosen language. */
export const t = (name) => TEXTS[language][name];
/** The sentence of a key of the recipe. */
export const sentence = (field) => field[language];
export const proofName = (name) => t("proofNames")[name] || name;
export const chosenLanguage = () => language;

/** Change the language of everything that is in the page already. */
export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  try { localStorage.setItem(STORE, language); } catch { /* a private window */ }
  translate();
}

export function translate() {
  document.title = t("title");
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const each of document.querySelectorAll("[data-text]")) each.textContent = t(each.dataset.text);
  for (const each of document.querySelectorAll("[data-label]")) each.setAttribute("aria-label", t(each.dataset.label));
  const button = document.getElementById("language");
  button.textContent = language === "zh" ? "English" : "中文";
  button.lang = language === "zh" ? "en" : "zh-CN";
}
