"use strict";
// The controls of a page that computes. The same program that wrote the page answers here, compiled to
// WebAssembly: a control changes a flag of its command line, and the answer replaces the tables and figures.
(() => {
  const data = (id) => document.getElementById(id).textContent;
  const given = JSON.parse(data("question"));
  const form = document.getElementById("controls");
  const answer = document.getElementById("answer");
  const status = document.getElementById("status");
  const line = document.getElementById("line");
  if (!window.WebAssembly || !window.Worker || !window.DecompressionStream) return;

  const bytes = (text) => Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const unpacked = (packed) =>
    new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();

  // Flags of the run that wrote the page, and those that the reader changed.
  const made = new Map(given.arguments.map((word) => {
    const at = word.indexOf("=");
    return at < 0 ? [word, ""] : [word.slice(0, at), word.slice(at + 1)];
  }));
  const changed = new Map();
  const inputs = new Map();
  for (const input of form.querySelectorAll("input[data-flag]")) inputs.set(input.dataset.flag, input);
  const words = () => {
    const all = new Map(made);
    for (const [flag, value] of changed) value === "" ? all.delete(flag) : all.set(flag, value);
    return [...all].map(([flag, value]) => (value === "" ? flag : `${flag}=${value}`));
  };

  // Numbers as the command line takes them: 1e21, 20ms, 1T.
  const UNITS = { us: 1e-6, ms: 1e-3, s: 1, min: 60, k: 1e3, M: 1e6, B: 1e9, G: 1e9, T: 1e12, P: 1e15 };
  const number = (text) => {
    const parts = /^\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z]*)\s*$/.exec(text);
    if (!parts) return NaN;
    return Number(parts[1]) * (parts[2] === "" ? 1 : UNITS[parts[2]] ?? NaN);
  };
  const short = (value, unit) => {
    const scaled = value / (UNITS[unit] ?? 1);
    const text = scaled >= 1e5 || scaled < 1e-3 ? scaled.toExponential(1) : String(Number(scaled.toPrecision(2)));
    return text.replace("e+", "e") + unit;
  };

  const quoted = (word) => (/^[\w@%+=:,.\/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
  const command = () => ["moe-frontier", "rank", ...words().map(quoted)].join(" ");
  const describe = () => {
    line.textContent = command();
    const state = new URLSearchParams([...changed].map(([flag, value]) => [flag.slice(2), value]));
    const hash = state.toString();
    history.replaceState(null, "", hash === "" ? location.pathname + location.search : `#${hash}`);
  };

  const slide = (input) => {
    const range = input.parentElement.querySelector("input[type=range]");
    if (!range) return;
    const value = number(input.value !== "" ? input.value : input.dataset.usual ?? "");
    if (Number.isFinite(value) && value > 0) range.value = String(Math.log10(value));
  };
  const show = () => {
    for (const [flag, input] of inputs) {
      input.value = changed.get(flag) ?? made.get(flag) ?? "";
      input.toggleAttribute("data-changed", changed.has(flag));
      slide(input);
    }
  };
  const restore = () => {
    changed.clear();
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      if (inputs.has(`--${name}`)) changed.set(`--${name}`, value);
    }
  };

  const CODE = `
    let module, memory;
    const put = (bytes) => {
      const at = module.exports.room(bytes.length);
      new Uint8Array(memory().buffer, at, bytes.length).set(bytes);
      return at;
    };
    onmessage = async ({ data }) => {
      if (data.code) {
        const imports = {};
        for (const { module: room, name } of WebAssembly.Module.imports(data.code)) {
          (imports[room] ??= {})[name] = () => { throw new Error(name); };
        }
        module = await WebAssembly.instantiate(data.code, imports);
        memory = () => module.exports.memory;
        for (const [name, content] of data.files) {
          const called = new TextEncoder().encode(name);
          module.exports.bring(put(called), called.length, put(content), content.length);
        }
        postMessage({ ready: true });
        return;
      }
      const words = new TextEncoder().encode(JSON.stringify(data.words));
      const begun = performance.now();
      try {
        const length = module.exports.answer(put(words), words.length);
        const text = new TextDecoder().decode(new Uint8Array(memory().buffer, module.exports.answer_at(), length));
        postMessage({ of: data.of, ms: performance.now() - begun, ...JSON.parse(text) });
      } catch (error) {
        const { answer_at, answer_len } = module.exports;
        const said = new TextDecoder().decode(new Uint8Array(memory().buffer, answer_at(), answer_len()));
        postMessage({ of: data.of, broken: \`\${error}: \${said}\` });
      }
    };`;

  let code, files, worker, busy = false, asked = 0, waiting = null, last = null;
  const begin = () => {
    worker = new Worker(URL.createObjectURL(new Blob([CODE], { type: "text/javascript" })));
    worker.onmessage = ({ data }) => receive(data);
    worker.postMessage({ code, files });
  };
  const send = () => {
    if (busy || waiting === null) return;
    busy = true;
    worker.postMessage(waiting);
    waiting = null;
  };
  const ask = () => {
    describe();
    asked += 1;
    waiting = { of: asked, words: words() };
    status.textContent = "computing …";
    form.setAttribute("aria-busy", "true");
    send();
  };
  const receive = (data) => {
    if (data.ready) return;
    busy = false;
    if (data.broken) {
      // A module that stopped in the middle is not asked again.
      worker.terminate();
      begin();
    }
    if (data.of === asked) {
      form.removeAttribute("aria-busy");
      if (data.html) {
        answer.innerHTML = data.html;
        last = data.report;
        then?.();
        then = null;
        const is_own = changed.size === 0;
        status.textContent = is_own ? "as the page was written" : `computed here in ${(data.ms / 1e3).toFixed(1)} s`;
        answer.dataset.of = String(data.of);
      } else {
        status.textContent = data.error ?? `stopped: ${data.broken}`;
      }
    }
    send();
  };

  let timer = 0;
  const change = (input, soon) => {
    const flag = input.dataset.flag;
    const value = input.value.trim();
    value === (made.get(flag) ?? "") ? changed.delete(flag) : changed.set(flag, value);
    input.toggleAttribute("data-changed", changed.has(flag));
    clearTimeout(timer);
    timer = setTimeout(ask, soon ? 0 : 150);
  };
  form.addEventListener("input", ({ target }) => {
    if (target.type === "range") {
      const input = target.parentElement.querySelector("input[data-flag]");
      input.value = short(10 ** Number(target.value), input.dataset.unit ?? "");
      change(input, false);
    }
  });
  form.addEventListener("change", ({ target }) => {
    if (target.dataset.flag) {
      slide(target);
      change(target, true);
    }
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", () => { restore(); show(); ask(); });

  const save = (name, type, content) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1e4);
  };
  const csv = () => {
    const rows = last === null ? [] : JSON.parse(last).candidates;
    const names = [...new Set(rows.flatMap(Object.keys))].filter((name) => rows.some((r) => typeof r[name] !== "object"));
    const cell = (value) => {
      const text = value === null || value === undefined || typeof value === "object" ? "" : String(value);
      return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [names.join(","), ...rows.map((row) => names.map((name) => cell(row[name])).join(","))].join("\n") + "\n";
  };
  const picture = () => {
    const svg = answer.querySelector("svg");
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [1920, 1200];
      canvas.getContext("2d").drawImage(image, 0, 0, 1920, 1200);
      canvas.toBlob((blob) => save("frontier.png", "image/png", blob));
    };
    image.src = `data:image/svg+xml;base64,${btoa(unescape(encodeURIComponent(svg.outerHTML)))}`;
  };
  const copied = (text, what) =>
    (navigator.clipboard?.writeText(text) ?? Promise.reject()).then(
      () => { status.textContent = `${what} copied`; },
      () => { status.textContent = text; },
    );
  // The page as written holds no report: its first download computes one.
  let then = null;
  const computed = (use) => {
    if (last !== null) return use();
    then = use;
    ask();
  };
  const actions = {
    reset: () => { changed.clear(); show(); ask(); },
    link: () => copied(location.href, "link"),
    command: () => copied(command(), "command"),
    json: () => computed(() => save("rank.json", "application/json", last)),
    csv: () => computed(() => save("candidates.csv", "text/csv", csv())),
    png: picture,
  };
  form.addEventListener("click", ({ target }) => actions[target.dataset?.action]?.());

  (async () => {
    code = await WebAssembly.compile(await unpacked(bytes(data("module"))));
    files = await Promise.all(
      given.files.map(async (name, i) => [name, new Uint8Array(await unpacked(bytes(data(`file${i}`))))]),
    );
    begin();
    restore();
    show();
    document.getElementById("panel").hidden = false;
    line.textContent = command();
    // The page as written is already an answer; what its address asks, or a download, is computed.
    if (changed.size > 0) ask();
    else status.textContent = "as the page was written";
    document.documentElement.dataset.live = "ready";
  })().catch((error) => { status.textContent = `this page cannot compute here: ${error}`; });
})();
