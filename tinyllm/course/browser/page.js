// The cells of a lesson: what stands in them is run by a worker, one after the other, and its words and pictures shown below.
const MARK = "\x1d", state = document.getElementById("state"), cells = [...document.querySelectorAll(".cell")];
let worker, waiting = [], busy = null;

function begin() {
  worker?.terminate();
  for (const cell of waiting.concat(busy ?? [])) cell.classList.remove("runs");
  waiting = [];
  busy = null;
  state.textContent = "Python is starting ...";
  worker = new Worker("/worker.js", { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.started) state.textContent = "Python is ready. Run the cells from above: Shift and Enter runs one and goes on.";
    else if (data.broken) state.textContent = `Python cannot be started: ${data.broken}`;
    else shown(data);
    next();
  };
  worker.onerror = (error) => { state.textContent = `Python cannot be started: ${error.message ?? "see the console"}`; };
}

function run(cell) {
  if (cell === busy || waiting.includes(cell)) return;
  cell.classList.add("runs");
  waiting.push(cell);
  if (!busy) next();
}

function next() {
  if (busy || !waiting.length) return;
  busy = waiting.shift();
  state.textContent = `Cell ${cells.indexOf(busy) + 1} runs ...`;
  worker.postMessage({ run: busy.querySelector("textarea").value });
}

function shown({ output, failed }) {
  const cell = busy, place = cell.querySelector(".output");
  busy = null;
  cell.classList.remove("runs");
  cell.classList.toggle("failed", failed);
  place.replaceChildren(...output.split(MARK).map((piece, i) => {
    const element = document.createElement(i % 2 ? "div" : "pre");
    if (i % 2) element.innerHTML = JSON.parse(piece);
    else element.textContent = piece.trim();
    return element;
  }).filter((element) => element.childNodes.length));
  state.textContent = `Cell ${cells.indexOf(cell) + 1} ${failed ? "failed" : "has run"}.`;
}

for (const cell of cells) {
  const code = cell.querySelector("textarea");
  cell.querySelector(".run").addEventListener("click", () => run(cell));
  code.addEventListener("input", () => { code.rows = code.value.split("\n").length; });
  code.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !event.shiftKey) return;
    event.preventDefault();
    run(cell);
    cells[cells.indexOf(cell) + 1]?.querySelector("textarea").focus();
  });
}
document.getElementById("stop").addEventListener("click", begin);
begin();
