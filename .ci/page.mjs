// What a browser makes of the page of a ranking: `node page.mjs PAGE PROGRAM PICTURES`.
//
// Nothing is cut off on a screen, a phone or paper; nothing is asked of a network; no error is logged; axe finds
// no fault; and what the page computes is what the program computes.

import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [page_file, program, pictures] = process.argv.slice(2).map((path) => resolve(path));
const require = createRequire(`${process.env.PAGE_MODULES}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
mkdirSync(pictures, { recursive: true });

let faults = 0;
const check = (holds, what) => {
  if (!holds) faults += 1;
  console.log(`${holds ? "ok   " : "FAULT"} ${what}`);
};

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

const open = async (options, hash = "") => {
  const context = await browser.newContext({ acceptDownloads: true, ...options });
  const page = await context.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  const asked = [];
  page.on("request", (request) => !/^(file|blob|data):/.test(request.url()) && asked.push(request.url()));
  await page.goto(pathToFileURL(page_file).href + hash);
  return { context, page, errors, asked };
};
const quiet = ({ errors, asked }, name) => {
  check(errors.length === 0, `${name}: no error is logged ${errors.join("; ")}`);
  check(asked.length === 0, `${name}: nothing is asked of a network ${asked.join(" ")}`);
};
// Elements with text of their own that end outside the width and do not scroll.
const cut = (page) =>
  page.evaluate(() => {
    const width = document.documentElement.clientWidth;
    const scrolls = (e) => {
      for (let up = e; up; up = up.parentElement) if (/auto|scroll/.test(getComputedStyle(up).overflowX)) return true;
      return false;
    };
    return [...document.querySelectorAll("body *")]
      .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim() !== ""))
      .filter((e) => e.getClientRects().length > 0 && !scrolls(e) && e.getBoundingClientRect().right > width + 1)
      .map((e) => e.textContent.trim().slice(0, 40));
  });
const live = (page) => page.waitForFunction(() => document.documentElement.dataset.live === "ready", null, { timeout: 60_000 });
const has_controls = readFileSync(page_file, "utf8").includes('id="controls"');

for (const [name, options] of [
  ["screen", { viewport: { width: 1280, height: 800 } }],
  ["phone", { viewport: { width: 390, height: 844 }, isMobile: true, deviceScaleFactor: 2 }],
  ["dark", { viewport: { width: 1280, height: 800 }, colorScheme: "dark" }],
]) {
  const shown = await open(options);
  const { page, context } = shown;
  if (has_controls) await live(page);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  check(wide <= 0, `${name}: the page does not scroll sideways (${wide} px)`);
  const outside = await cut(page);
  check(outside.length === 0, `${name}: no text is cut off ${JSON.stringify(outside.slice(0, 3))}`);
  if (name === "screen") {
    const places = await page.evaluate(() =>
      [".first", "#cost_frontier svg"].map((s) => document.querySelector(s).getBoundingClientRect().bottom));
    check(places.every((bottom) => bottom <= 800), `${name}: answer and frontier are above the fold (${places.map(Math.round)})`);
  }
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  for (const { id, nodes } of found.violations) console.log(`      ${id}: ${nodes[0].html.slice(0, 160)}`);
  check(found.violations.length === 0, `${name}: axe finds no fault (${found.passes.length} rules hold)`);
  await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
  quiet(shown, name);
  await context.close();
}

{
  // A4 less its margins of 10 mm, at 96 pixels an inch.
  const shown = await open({ viewport: { width: 718, height: 1047 } });
  await shown.page.emulateMedia({ media: "print" });
  const outside = await cut(shown.page);
  check(outside.length === 0, `paper: no text is cut off ${JSON.stringify(outside.slice(0, 3))}`);
  await shown.page.pdf({ path: `${pictures}/paper.pdf`, format: "A4", margin: { top: "10mm", bottom: "10mm", left: "10mm", right: "10mm" } });
  await shown.context.close();
}

{
  const shown = await open({ viewport: { width: 1280, height: 800 }, javaScriptEnabled: false });
  const tables = await shown.page.locator("main table").count();
  check(tables > 3 && !(await shown.page.locator("#panel").isVisible()), `without scripts: ${tables} tables, no controls`);
  await shown.context.close();
}

// The leaves of two documents that are not the same number to 1e-9 or the same text. Ends of intervals lie between
// two draws, of which each may end in another place of a flat minimum: they are held to 1e-6.
const differences = (a, b, path = "") => {
  if (typeof a === "number" && typeof b === "number") {
    const within = path.includes("interval") ? 1e-6 : 1e-9;
    return Math.abs(a - b) <= within * Math.max(Math.abs(a), Math.abs(b)) ? [] : [`${path}: ${a}, not ${b}`];
  }
  if (a !== null && b !== null && typeof a === "object" && typeof b === "object") {
    return [...new Set([...Object.keys(a), ...Object.keys(b)])].flatMap((key) => differences(a[key], b[key], `${path}.${key}`));
  }
  return a === b ? [] : [`${path}: ${a}, not ${b}`];
};

if (has_controls) {
  const shown = await open({ viewport: { width: 1280, height: 800 } });
  const { page } = shown;
  await live(page);
  await page.click("#panel summary");
  const settled = async () => {
    await page.waitForFunction(() => !document.getElementById("controls").hasAttribute("aria-busy"), null, { timeout: 120_000 });
    return page.locator("#status").textContent();
  };
  const lines = async () => (await page.locator("#answer").innerText()).split("\n");
  const written = await lines();
  await page.click("[data-action=reset]");
  await settled();
  const computed = await lines();
  const other = written.findIndex((line, i) => line !== computed[i]);
  check(other < 0, `the page computes what it was written with ${other < 0 ? "" : `${written[other]} / ${computed[other]}`}`);
  const flags = JSON.parse(await page.locator("#question").textContent()).arguments;
  const download = async (action) => {
    const [file] = await Promise.all([page.waitForEvent("download"), page.click(`[data-action=${action}]`)]);
    return readFileSync(await file.path());
  };
  const asked_of_program = (words) =>
    JSON.parse(execFileSync(program, ["rank", "--json", "--overwrite", "--out", `${pictures}/asked`, ...words], { maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "ignore"] }));
  // What an answer rests on. Layouts of the same cost may differ, as may the place of a flat minimum: two
  // libraries of mathematical functions differ in their last bit.
  const VALUES = ["experts", "kind", "n_active", "n_total", "tokens", "loss_nats", "train_usd", "serve_usd_per_million_output_tokens", "total_usd", "tpot_ms", "p_best"];
  const essence = ({ candidates, frontier, laws, mixture, p_none }) => ({
    candidates: candidates.map((c) => Object.fromEntries(VALUES.map((name) => [name, c[name]]))),
    frontier, laws, mixture, p_none,
  });
  const equal = (name, page_report, words) => {
    const found = differences(essence(page_report), essence(asked_of_program(words)));
    check(found.length === 0, `${name}: the page and the program agree ${found.slice(0, 3).join("; ")}`);
  };
  for (const [flag, value] of [["--rate", "37"], ["--tpot", "31ms"], ["--lifetime-tokens", "3T"], ["--mfu", "0.33"], ["--kv-group", "4"]]) {
    await page.fill(`input[data-flag="${flag}"]`, value);
    await page.dispatchEvent(`input[data-flag="${flag}"]`, "change");
    const said = await settled();
    check(/computed here in/.test(said), `${flag}=${value}: ${said}`);
    const words = [...flags.filter((f) => !f.startsWith(`${flag}=`)), `${flag}=${value}`];
    equal(flag, JSON.parse(await download("json")), words);
    await page.click("[data-action=reset]");
    await settled();
  }
  await page.fill('input[data-flag="--rate"]', "minus one");
  await page.dispatchEvent('input[data-flag="--rate"]', "change");
  check(/invalid value/.test(await settled()), "a wrong value is refused in words");
  await page.click("[data-action=reset]");
  await settled();
  await page.locator('input[data-flag="--rate"] ~ input[type=range]').fill("2.3");
  await settled();
  check((await page.inputValue('input[data-flag="--rate"]')) === "200", "a slider writes its value");
  await page.waitForFunction(() => location.hash !== "");
  check(new URL(page.url()).hash.includes("rate=200"), `the address keeps it: ${new URL(page.url()).hash}`);
  const csv = (await download("csv")).toString();
  check(csv.startsWith("experts,") && csv.trim().split("\n").length > 5, "candidates as CSV");
  check((await download("png")).subarray(1, 4).toString() === "PNG", "the frontier as PNG");
  quiet(shown, "live");
  await shown.context.close();
  const again = await open({ viewport: { width: 1280, height: 800 } }, "#rate=100");
  await live(again.page);
  check((await again.page.inputValue('input[data-flag="--rate"]')) === "100", "an address brings its values back");
  await again.context.close();
}

const length = readFileSync(page_file).length;
console.log(`page of ${(length / 1e6).toFixed(2)} MB, ${faults} faults`);
await browser.close();
process.exit(faults === 0 ? 0 : 1);
