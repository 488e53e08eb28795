// Python: CPython in WebAssembly, with the engine in its files. Asked for {run: text}, it answers {output, failed}.
import { ConsoleStdout, Directory, File, OpenFile, PreopenDirectory, WASI } from "./shim/index.js";

const BEGIN = `import sys, os, json, logging
logging.getLogger("matplotlib").setLevel("ERROR")
sys.path.insert(0, "/packages")
os.environ["MPLBACKEND"] = "Agg"
from tinyllm.course.browser import standins
standins.install()
standins.recall(json.load(open("/packages/cases.json")))`;
let exports, output = "";
const said = new TextDecoder();

function folders(index, bytes) {
  const root = new Map();
  let at = 0;
  for (const [path, size] of index) {
    const names = path.split("/"), name = names.pop();
    let folder = root;
    for (const part of names) {
      if (!folder.has(part)) folder.set(part, new Directory(new Map()));
      folder = folder.get(part).contents;
    }
    folder.set(name, new File(bytes.subarray(at, at + size), { readonly: true }));
    at += size;
  }
  return root;
}

async function got(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`the server has no ${path}`);
  return answer;
}

async function start() {
  const read = async (path) => new Uint8Array(await (await got(path)).arrayBuffer());
  const [module, library, index, bytes, cases] = await Promise.all([WebAssembly.compileStreaming(got("/python.wasm")),
    read("/python.zip"), got("/files.json").then((a) => a.json()), read("/files.bin"), read("/cases.json")]);
  const packages = folders(index, bytes), out = () => new ConsoleStdout((data) => { output += said.decode(data, { stream: true }); });
  packages.set("cases.json", new File(cases, { readonly: true }));
  const files = [new OpenFile(new File([])), out(), out(),
    new PreopenDirectory("/usr/local/lib", new Map([["python315.zip", new File(library, { readonly: true })]])),
    new PreopenDirectory("/packages", packages), new PreopenDirectory("/tmp", new Map())];
  const wasi = new WASI(["/usr/local/bin/python.wasm"], ["HOME=/tmp", "NO_COLOR=1"], files, { debug: false });
  const instance = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: wasi.wasiImport, host: { call: () => -1 } });
  exports = instance.exports;
  wasi.inst = instance;
  exports._initialize();
  const { output: told, failed } = run(BEGIN);
  if (failed) throw new Error(told);
}

function run(text) {
  const data = new TextEncoder().encode(text), place = exports.host_alloc(data.length) >>> 0;
  new Uint8Array(exports.memory.buffer).set(data, place);
  output = "";
  try {
    const failed = exports.turn(place, data.length) !== 0;
    return { output, failed };
  } catch (error) {
    return { output: `${output}\nPython has ended (${error.message}): start it afresh.`, failed: true };
  }
}

const started = start().then(() => postMessage({ started: true }), (error) => postMessage({ broken: String(error.message) }));
onmessage = async ({ data }) => {
  await started;
  postMessage(run(data.run));
};
