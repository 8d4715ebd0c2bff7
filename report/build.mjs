// Builds the page's script and style from page/ into dist/, or with --verify says whether dist/ is what they
// build to.
import { readFileSync, writeFileSync } from "node:fs";
import { buildSync } from "esbuild";

const verifies = process.argv.includes("--verify");
for (const [entry, out] of [["page/main.ts", "dist/page.js"], ["page/style.css", "dist/page.css"]]) {
  const { outputFiles } = buildSync({
    entryPoints: [entry],
    bundle: true,
    minify: true,
    format: "iife",
    target: "es2022",
    charset: "ascii",
    legalComments: "none",
    write: false,
  });
  const built = outputFiles[0].text;
  if (built.includes("</script") || built.includes("<!--")) {
    throw new Error(`${out}: holds what would end a script in HTML`);
  }
  if (!verifies) {
    writeFileSync(out, built);
  } else if (readFileSync(out, "utf8") !== built) {
    throw new Error(`${out} is not what page/ builds to; run npm run build and check it in`);
  }
}
