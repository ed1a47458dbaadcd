// Draws vector pictures: node raster.js TOOL_FOLDER TARGET_FOLDER SIDE, with TARGET_FOLDER/jobs.json {code: svg}.
const fs = require("fs");
const path = require("path");
const [tool, target, side] = process.argv.slice(2);
const { Resvg } = require(path.join(tool, "node_modules", "@resvg", "resvg-js"));
const jobs = JSON.parse(fs.readFileSync(path.join(target, "jobs.json"), "utf8"));
for (const [code, svg] of Object.entries(jobs)) {
  fs.writeFileSync(path.join(target, "current"), code); // names the culprit if the rasteriser aborts
  const drawn = new Resvg(svg, { fitTo: { mode: "width", value: Number(side) } }).render();
  fs.writeFileSync(path.join(target, code + ".png"), drawn.asPng());
}
