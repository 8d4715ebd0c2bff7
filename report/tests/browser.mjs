// The page in a browser. tests/report.rs makes the pages and calls this with their folder:
// node --test report/tests/browser.mjs, with PAGES=FOLDER and CHROMIUM=PROGRAM.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const pages = process.env.PAGES;
let browser;

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: [
      "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ],
  });
});

after(() => browser.close());

/** Opens a page; whatever it says on the console and asks of any address fails the test at its end. */
async function open(t, name, { hash = "", width = 1280, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, acceptDownloads: true, ...options });
  const page = await context.newPage();
  const said = [];
  page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => said.push(`error: ${error.stack}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith("blob:") && !url.startsWith(`${pathToFileURL(pages)}/`)) said.push(`request: ${url}`);
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(said, []);
  });
  await page.goto(`${pathToFileURL(pages)}/${name}.html${hash}`);
  if (options.javaScriptEnabled !== false) await page.waitForSelector("html[data-ready]");
  return page;
}

const caption = (page) => page.locator("#circuit .half:last-child .caption").textContent();

/** Moves a slider as a hand would. */
async function slide(page, label, value) {
  const slider = page.locator(`#circuit input[type=range][aria-label="${label}"]`);
  await slider.evaluate((input, value) => {
    input.value = value === "max" ? input.max : String(value);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }, value);
  await frame(page);
}

/** Chooses one of a row of buttons. */
const pick = (page, panel, group, name) =>
  page.locator(panel).getByRole("group", { name: group }).getByRole("radio", { name, exact: true }).check();

const frame = (page) => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));

/** How many curves the drawing has. */
const curves = (page) =>
  page.evaluate(() =>
    [...document.querySelectorAll("#circuit .half:last-child path.edge:not(.hot)")]
      .map((path) => path.getAttribute("d").split("M").length - 1)
      .reduce((a, b) => a + b, 0),
  );

test("sliders choose a circuit and how much of it, and the address keeps both", async (t) => {
  const page = await open(t, "run");
  assert.match(await caption(page), /^before tuning: 20 of 20 edges/);
  await slide(page, "circuit", "max");
  await slide(page, "edges", 7);
  assert.match(await caption(page), /^after tuning: 7 of 7 edges/);
  assert.equal(await curves(page), 7);
  assert.match(page.url(), /top=7/);
  await page.reload();
  await page.waitForSelector("html[data-ready]");
  assert.match(await caption(page), /^after tuning: 7 of 7 edges/);
});

test("filters hide edges by input, sign, layer and size, and tell new from lost", async (t) => {
  const page = await open(t, "run");
  await slide(page, "circuit", "max");
  const all = await curves(page);
  const inputs = page.locator("#circuit fieldset", { hasText: "read through" });
  await inputs.getByLabel("MLP").uncheck();
  await frame(page);
  assert.ok((await curves(page)) < all);
  await inputs.getByLabel("MLP").check();
  await page.locator("#circuit fieldset", { hasText: "written by" }).getByLabel("heads").uncheck();
  await frame(page);
  assert.ok((await curves(page)) < all);
  await page.locator("#circuit fieldset", { hasText: "written by" }).getByLabel("heads").check();
  const signs = [];
  for (const sign of ["+", "\u2212"]) {
    await pick(page, "#circuit", "sign", sign);
    await frame(page);
    signs.push(await curves(page));
  }
  assert.equal(signs[0] + signs[1], all);
  await pick(page, "#circuit", "sign", "both");
  await slide(page, "|score| from", 1000);
  assert.equal(await curves(page), 1);
  await slide(page, "|score| from", 0);
  await pick(page, "#circuit", "against the first", "new");
  await frame(page);
  const added = await curves(page);
  await pick(page, "#circuit", "against the first", "lost");
  await frame(page);
  // Circuits of one size: what came is what went.
  assert.equal(await curves(page), added);
});

test("a node is chosen by pointer and keyboard, and every panel follows", async (t) => {
  const page = await open(t, "run");
  const name = await page.locator("#edges tbody .link").first().textContent();
  await page.locator("#edges tbody .link").first().click();
  await frame(page);
  assert.equal(await page.locator("#circuit .inspector h3").evaluate((h3) => h3.firstChild.textContent), name);
  assert.equal(await page.locator("#nodes .node-detail h3").textContent(), name);
  await page.waitForTimeout(400);
  assert.ok((await page.locator("#edges tr.chosen").count()) > 0);
  await page.locator('#circuit .half:last-child [data-name="logits"]').focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await frame(page);
  const other = await page.locator("#circuit .inspector h3").evaluate((h3) => h3.firstChild.textContent);
  assert.notEqual(other, name);
  await page.keyboard.press("Escape");
  await frame(page);
  assert.equal(await page.locator("#circuit .inspector h3").count(), 0);
});

test("what is seen is saved as CSV and SVG", async (t) => {
  const page = await open(t, "run", { hash: "#top=5" });
  const save = async (name) => {
    const [file] = await Promise.all([page.waitForEvent("download"), page.locator("#circuit").getByText(name).click()]);
    return readFile(await file.path(), "utf8");
  };
  const lines = (await save("\u2193 CSV")).trim().split("\r\n");
  assert.equal(lines.length, 6);
  assert.match(lines[0], /^circuit,writer,reader,score,standard_error/);
  const svg = await save("\u2193 SVG");
  assert.ok(!svg.includes("var(--"), "colours are resolved");
  const wellFormed = await page.evaluate((text) => {
    const parsed = new DOMParser().parseFromString(text, "image/svg+xml");
    return parsed.querySelector("parsererror") === null && parsed.querySelectorAll("path.edge").length > 0;
  }, svg);
  assert.ok(wellFormed);
});

test("dark and light follow the system, and the switch", async (t) => {
  const ground = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground(await open(t, "run", { colorScheme: "light" }));
  const page = await open(t, "run", { colorScheme: "dark" });
  assert.notEqual(await ground(page), light);
  await pick(page, "#top", "theme", "light");
  assert.equal(await ground(page), light);
});

test("curves show their values under the pointer and the arrow keys, and choose a circuit", async (t) => {
  const page = await open(t, "run");
  const plot = page.locator("#curves .plot").first();
  await plot.locator("svg").focus();
  await page.keyboard.press("Home");
  assert.match(await plot.locator(".readout").textContent(), /step 0/);
  await page.keyboard.press("End");
  await page.keyboard.press("Enter");
  await frame(page);
  assert.match(await caption(page), /^step /);
});

test("examples stand side by side with their attention", async (t) => {
  const page = await open(t, "run");
  const cards = page.locator("#examples .card");
  assert.equal(await cards.count(), 2);
  assert.ok((await cards.first().locator(".attention .cell").count()) > 0);
  await page.locator("#examples tbody tr").nth(2).click();
  await frame(page);
  assert.equal(await cards.count(), 3);
  await pick(page, "#examples", "as", "lines");
  await frame(page);
  assert.ok((await cards.first().locator(".looks.shown path").count()) > 0);
});

test("tables are sorted and searched", async (t) => {
  const page = await open(t, "run");
  const edges = page.locator("#edges .data-table").first();
  await edges.getByRole("button", { name: "score" }).click();
  const scores = await edges.locator("tbody td:nth-child(4)").allTextContents();
  const numbers = scores.map((text) => Number(text.replace("\u2212", "-")));
  assert.deepEqual(numbers, numbers.slice().sort((a, b) => b - a));
  await edges.getByRole("searchbox").fill("no such node");
  assert.equal(await edges.locator("tbody tr").count(), 0);
});

test("a sweep's table is sorted, and a run is chosen in it", async (t) => {
  const page = await open(t, "sweep");
  assert.ok((await page.locator("#runs .plots figure").count()) >= 2);
  const means = page.locator("#runs tbody tr", { hasText: /^allafter/ });
  assert.match(await means.textContent(), /±/, "the mean over two seeds has an interval");
  await page.locator("#runs tbody .link", { hasText: "all" }).first().click();
  await frame(page);
  assert.match(await page.locator("#asked").textContent(), /all/);
  assert.match(await page.locator("#circuit .empty").textContent(), /no circuit/);
});

test("500 edges rediscovered 200 times open within 2 s", async (t) => {
  const taken = [];
  for (let trial = 0; trial < 3; trial += 1) {
    const page = await open(t, "large");
    taken.push(await page.evaluate(() => performance.now()));
  }
  t.diagnostic(`ready after ${taken.map(Math.round).join(", ")} ms`);
  assert.ok(Math.min(...taken) < 2000, String(taken));
});

// Other work on the machine may hold frames up; what counts is the time that the page itself takes for one.
test("3,000 edges move at 30 frames a second", async (t) => {
  const page = await open(t, "huge");
  const session = await page.context().newCDPSession(page);
  await session.send("Performance.enable", { timeDomain: "threadTicks" });
  const busy = async () => {
    const { metrics } = await session.send("Performance.getMetrics");
    return metrics.find((metric) => metric.name === "TaskDuration").value * 1000;
  };
  const frames = 60;
  const before = await busy();
  const taken = await page.evaluate(async (frames) => {
    const slider = document.querySelector('#circuit input[aria-label="circuit"]');
    const next = () => new Promise((done) => requestAnimationFrame(done));
    await next();
    const start = performance.now();
    for (let index = 0; index < frames; index += 1) {
      slider.value = String(index % (Number(slider.max) + 1));
      slider.dispatchEvent(new Event("input", { bubbles: true }));
      await next();
    }
    return performance.now() - start;
  }, frames);
  const own = ((await busy()) - before) / frames;
  t.diagnostic(`${own.toFixed(1)} ms of the page's own time a frame, ${(taken / frames).toFixed(1)} ms by the clock`);
  assert.ok(own < 1000 / 30, String(own));
});

test("a circuit whose scores are all zero is drawn", async (t) => {
  const page = await open(t, "zero");
  assert.equal(await curves(page), 4);
  const broken = await page.evaluate(() => [...document.querySelectorAll("svg *")].filter((of) => [...of.attributes].some((a) => /NaN|Infinity/.test(a.value))).length);
  assert.equal(broken, 0);
});

test("names that hold markup are shown as they are", async (t) => {
  const page = await open(t, "markup");
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  assert.equal(await page.locator("img").count(), 0);
  assert.match(await page.locator("#asked").textContent(), /<\/script><img src=x/);
  assert.match(await page.locator("#examples").textContent(), /<b>token<\/b>/);
  assert.match(await page.locator("#figures").textContent(), /<i>figure<\/i>/);
});

test("a run of a former version shows what it has", async (t) => {
  const page = await open(t, "zero");
  assert.match(await page.locator("#faithfulness").textContent(), /weren't evaluated/);
  assert.match(await page.locator("#examples").textContent(), /no examples/);
});

test("it can be read without a script", async (t) => {
  const page = await open(t, "run", { javaScriptEnabled: false });
  for (const part of ["#figures table", "#circuit svg", "#curves polyline", "#faithfulness svg", "#examples table", "#edges table"]) {
    assert.ok(await page.locator(part).first().isVisible(), part);
  }
});

test("it works in a notebook's frame", async (t) => {
  const page = await open(t, "run");
  const html = await readFile(`${pages}/run.html`, "utf8");
  await page.evaluate((html) => {
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-scripts";
    frame.srcdoc = html;
    frame.width = "900";
    frame.height = "600";
    document.body.replaceChildren(frame);
  }, html);
  const frame = page.frameLocator("iframe");
  await frame.locator("html[data-ready]").waitFor();
  await frame.getByRole("radio", { name: "change", exact: true }).check();
  assert.ok((await frame.locator("#circuit .half:last-child path.edge.kept").count()) > 0);
});

test("a small screen has nothing beside it", async (t) => {
  for (const name of ["run", "sweep", "markup"]) {
    const page = await open(t, name, { width: 390 });
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 390, name);
  }
});
