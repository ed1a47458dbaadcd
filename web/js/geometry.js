// The grids of a picture: the same rule as stages/inputs/canvas.py and grids.py, so that the node shows what the server
// will do. tests/unit/test_canvas_page.py compares both over a grid of sizes; a change there has to be made here too.

export const MIN_SIDE = 64;
export const MAX_SIDE = 8192;
export const PIXEL_STEP = 8;
const LATENT_PIXELS = 4;
const COMPRESSION = 1024 / 24;
const PREFERRED = [38, 48];
const OFFICIAL_COMPRESSION = 42.67;
const TRAINED = [32, 64];
const ASKED = [16, 64];
export const OFFICIAL = "official";
const MAX_PADDING = 0.06;
const ASKED_BAND = 1.06;
const LOG_TOLERANCE = Math.log1p(0.005) - 1e-9;
const WEIGHT = 0.25;
const ASKED_WEIGHT = 1.0;
const TIGHT_WEIGHT = 0.02;

/** Steps, cells and stretch of the long side for each number of steps from `steps` up, the best cells for each. */
function* longSides(shortRatio, steps) {
  for (; ; steps++) {
    const exact = steps / shortRatio;
    let best = null;
    for (const cells of [Math.max(1, Math.floor(exact)), Math.ceil(exact)]) {
      const stretch = Math.abs(Math.log(steps / cells / shortRatio));
      if (best === null || stretch < best.stretch) best = { steps, cells, stretch };
    }
    yield best;
  }
}

/** The cheapest fit: padding from none upwards, until the padding alone costs more than the best fit so far. */
function fit(short, long, wish) {
  let best = Infinity;
  let found = null;
  for (let shortSteps = short; shortSteps / short - 1 < best; shortSteps++) {
    const pixels = PIXEL_STEP * shortSteps;
    for (let cells = Math.ceil(pixels / wish.high); cells <= Math.floor(pixels / wish.low); cells++) {
      const deviation = wish.weight * Math.abs(Math.log(pixels / cells / wish.target));
      for (const side of longSides(shortSteps / cells, long)) {
        const area = (shortSteps * side.steps) / (short * long) - 1;
        if (area + deviation >= best) break;
        const cost = area + deviation + wish.weight * side.stretch;
        if (side.stretch <= LOG_TOLERANCE && cost < best) {
          best = cost;
          found = { shortSteps, shortCells: cells, longSteps: side.steps, longCells: side.cells, padding: area };
        }
      }
    }
  }
  return found;
}

function wishes(compression) {
  const asked = compression !== null;
  const target = asked ? compression : COMPRESSION;
  const most = TRAINED[1];
  const least = asked && target < TRAINED[0] ? Math.max(ASKED[0], target / ASKED_BAND) : TRAINED[0];
  const [low, high] = asked
    ? [Math.max(least, target / ASKED_BAND), Math.min(most, target * ASKED_BAND)]
    : PREFERRED;
  return [
    { target, low, high, weight: asked ? ASKED_WEIGHT : WEIGHT },
    { target, low, high, weight: TIGHT_WEIGHT },
    { target, low: least, high: most, weight: WEIGHT },
    { target, low: least, high: most, weight: TIGHT_WEIGHT },
  ];
}

/** Steps and cells of width and height as the official code counts them, each side on its own. */
function officialSides(width, height, compression) {
  const ratio = compression ?? OFFICIAL_COMPRESSION;
  return [width, height].map((side) => [PIXEL_STEP * Math.ceil(side / PIXEL_STEP), Math.ceil(side / ratio)]);
}

/** Padded pixels and cells of width and height without stretch. */
function fittedSides(width, height, compression) {
  const [short, long] = [width, height].sort((a, b) => a - b).map((side) => Math.ceil(side / PIXEL_STEP));
  const rounding = (short * long * PIXEL_STEP ** 2) / (width * height);
  const fits = [];
  let best = null;
  for (const wish of wishes(compression)) {
    fits.push(fit(short, long, wish));
    if ((1 + fits.at(-1).padding) * rounding - 1 <= MAX_PADDING) {
      best = fits.at(-1);
      break;
    }
  }
  best ??= fits[2];
  const sides = [
    [PIXEL_STEP * best.shortSteps, best.shortCells],
    [PIXEL_STEP * best.longSteps, best.longCells],
  ];
  return width <= height ? sides : sides.reverse();
}

/**
 * The grids for a picture, or null where the server would refuse its size or compression.
 * `compression` null chooses it; `grid` is the option of the canvas node.
 */
export function plan(width, height, compression = null, grid = "") {
  const bad = (side) => !Number.isInteger(side) || side < MIN_SIDE || side > MAX_SIDE;
  if (bad(width) || bad(height)) return null;
  if (compression !== null && !(compression >= ASKED[0] && compression <= ASKED[1])) return null;
  const sides = (grid === OFFICIAL ? officialSides : fittedSides)(width, height, compression);
  const [[paddedWidth, columns], [paddedHeight, rows]] = sides;
  return {
    width,
    height,
    paddedWidth,
    paddedHeight,
    priorWidth: columns,
    priorHeight: rows,
    decoderWidth: paddedWidth / LATENT_PIXELS,
    decoderHeight: paddedHeight / LATENT_PIXELS,
    compression: Math.sqrt(((paddedWidth / columns) * paddedHeight) / rows),
    padding: (paddedWidth * paddedHeight) / (width * height) - 1,
    left: Math.floor((paddedWidth - width) / 2),
    top: Math.floor((paddedHeight - height) / 2),
  };
}

const toStep = (side) =>
  Math.min(MAX_SIDE, Math.max(MIN_SIDE, PIXEL_STEP * Math.round(side / PIXEL_STEP)));

/** The size with the area of `width` x `height` and the aspect `across` : `down`, in steps of 8 px. */
export function withAspect(width, height, across, down) {
  const scale = Math.sqrt((width * height) / (across * down));
  return [toStep(across * scale), toStep(down * scale)];
}

/** The nearest size that needs no padding, at most 8 steps away; the given size rounded if there is none. */
export function snapped(width, height, compression = null) {
  const [across, down] = [toStep(width), toStep(height)];
  const moves = [];
  for (let x = -8; x <= 8; x++) {
    for (let y = -8; y <= 8; y++) moves.push([x, y]);
  }
  moves.sort((a, b) => Math.hypot(...a) - Math.hypot(...b));
  for (const [x, y] of moves) {
    const found = plan(across + PIXEL_STEP * x, down + PIXEL_STEP * y, compression);
    if (found !== null && found.padding === 0) return [found.width, found.height];
  }
  return [across, down];
}
