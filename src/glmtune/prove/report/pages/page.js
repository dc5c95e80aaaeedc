"use strict";

// ---- the few words that are written here, in the language of the page
const isChinese = document.documentElement.lang.startsWith("zh");
const words = isChinese
  ? { learned: "要学习", unlearned: "不学习", cut: "截断", copied: "已复制", selected: "已选中", copy: "复制" }
  : { learned: "learned", unlearned: "not learned", cut: "cut", copied: "copied", selected: "selected", copy: "copy" };
const stepName = (step) => (isChinese ? `第 ${step} 步` : `step ${step}`);
const tokenName = (first, last) => {
  if (isChinese) return first === last ? `第 ${first} 个 token` : `第 ${first}–${last} 个 token`;
  return first === last ? `token ${first}` : `tokens ${first}–${last}`;
};

// ---- tokens: show the ids of a piece on hover, tap and arrow keys
const readout = document.getElementById("readout");
const stateNames = { l: words.learned, u: words.unlearned, x: words.cut };
let current = null;

function showPiece(piece) {
  if (current) current.classList.remove("now");
  current = piece;
  readout.hidden = !piece;
  if (!piece) return;
  piece.classList.add("now");
  const ids = piece.dataset.i.split(" ");
  const first = Number(piece.dataset.p);
  const where = tokenName(first, first + ids.length - 1);
  const state = Object.keys(stateNames).find((name) => piece.classList.contains(name));
  readout.textContent = `“${piece.textContent.trimEnd()}” · ${where} · ${ids.length > 1 ? "ids" : "id"} ${ids.join(" ")} · ${stateNames[state]}`;
}

for (const block of document.querySelectorAll(".tokens")) {
  block.addEventListener("pointerover", (event) => {
    const piece = event.target.closest(".t");
    if (piece) showPiece(piece);
  });
  block.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") showPiece(null);
  });
  block.addEventListener("focus", () => {
    if (!current || !block.contains(current)) showPiece(block.firstElementChild);
  });
  block.addEventListener("blur", () => showPiece(null));
  block.addEventListener("keydown", (event) => {
    const here = current && block.contains(current) ? current : block.firstElementChild;
    const next = {
      ArrowRight: here.nextElementSibling,
      ArrowLeft: here.previousElementSibling,
      Home: block.firstElementChild,
      End: block.lastElementChild,
    }[event.key];
    if (event.key === "Escape") showPiece(null);
    if (!next) return;
    event.preventDefault();
    showPiece(next);
    next.scrollIntoView({ block: "nearest" });
  });
}

// ---- charts: show the values of a step on hover and arrow keys
for (const chart of document.querySelectorAll(".chart")) {
  const data = JSON.parse(chart.dataset.chart);
  const plot = chart.querySelector(".plot");
  const rule = chart.querySelector(".rule");
  const value = chart.querySelector(".value");
  let index = data.steps.length - 1;

  function show(chosen) {
    index = Math.max(0, Math.min(data.steps.length - 1, chosen));
    rule.hidden = false;
    rule.style.left = data.at[index] + "%";
    const values = data.names
      .map((name, curve) => [name, data.values[curve][index]])
      .filter(([, number]) => number !== null)
      .map(([name, number]) => `${name} ${number}`);
    value.textContent = `${stepName(data.steps[index].toLocaleString("en"))}: ${values.join(", ")}`;
  }
  function hide() {
    rule.hidden = true;
    value.textContent = "\u00a0";
  }
  function nearest(event) {
    const box = plot.getBoundingClientRect();
    const at = (100 * (event.clientX - box.left)) / box.width;
    let best = 0;
    data.at.forEach((x, i) => {
      if (Math.abs(x - at) < Math.abs(data.at[best] - at)) best = i;
    });
    return best;
  }
  plot.addEventListener("pointermove", (event) => show(nearest(event)));
  plot.addEventListener("pointerdown", (event) => show(nearest(event)));
  plot.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && document.activeElement !== plot) hide();
  });
  plot.addEventListener("focus", () => show(index));
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(index + step);
  });
}

// ---- commands: copy one; where the clipboard is closed, select it for the keyboard
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = words.copied;
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = words.selected;
    }
    setTimeout(() => (button.textContent = words.copy), 1500);
  });
}
