// What each stage of the full model holds beside its weights while it makes a picture, in bytes: the rules of
// stages/nets/memory.py and StageA.decode_memory for the published shapes. tests/browser compares both.

const SKIPPED_BLOCK = 8;
const PLAIN_BLOCK = 6;
const SLACK = 1.05;
const BAND_BYTES = 24 * 2 ** 20;
const ALLOCATOR_SLACK = 1.2;

const STAGE_C = { patch: 1, widths: [2048, 2048], strides: [1, 1] };
const STAGE_B = { patch: 2, widths: [320, 640, 1280, 1280], strides: [1, 2, 4, 8] };
const STAGE_A = { hidden: 384, widest: 192, cell: 4, margin: 1 };

function activations(net, batch, height, width, bytes) {
  const cells = batch * Math.ceil(height / net.patch) * Math.ceil(width / net.patch);
  let peak = 0;
  let above = 0;
  net.widths.forEach((channels, index) => {
    const level = Math.floor((cells * channels) / net.strides[index] ** 2);
    const block = index === net.widths.length - 1 ? PLAIN_BLOCK : SKIPPED_BLOCK;
    peak = Math.max(peak, above + block * level);
    above += level;
  });
  return Math.trunc(SLACK * peak * bytes);
}

function decodeMemory(batch, height, width, bytes) {
  const wideBytes = (cells) => cells * STAGE_A.widest * (STAGE_A.cell / 2) ** 2 * bytes;
  const body = height * width * STAGE_A.hidden;
  const picture = batch * 3 * height * width * STAGE_A.cell ** 2;
  const rows = Math.min(height, Math.max(Math.floor(BAND_BYTES / wideBytes(width)), 16 * STAGE_A.margin, 1));
  const wide = wideBytes(rows * width);
  return (body + picture) * bytes + Math.trunc(ALLOCATOR_SLACK * (wide + 1.5 * Math.min(BAND_BYTES, 4 * wide)));
}

/**
 * Bytes by stage for a canvas of geometry.js. Guidance runs Stage C and Stage B on the batch twice over; `bytes` is
 * the size of a number (2 in 16 bit).
 */
export function workingMemory(canvas, batch = 1, bytes = 2) {
  return {
    C: activations(STAGE_C, 2 * batch, canvas.priorHeight, canvas.priorWidth, bytes),
    B: activations(STAGE_B, 2 * batch, canvas.decoderHeight, canvas.decoderWidth, bytes),
    A: decodeMemory(batch, canvas.decoderHeight, canvas.decoderWidth, bytes),
  };
}
