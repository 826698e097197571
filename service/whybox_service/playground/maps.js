// Heat maps: from the wire to cells, from cells to pixels, from pixels to colours.
// Boxes and regions are [x1, y1, x2, y2] in pixels of the upright picture.

import { diverging, heat } from "./colors.js";

/** Cells of a map sent as u8, row by row: value = min_value + byte / 255 · (max_value − min_value). */
export function decode(map) {
  const bytes = Uint8Array.from(atob(map.data), (character) => character.charCodeAt(0));
  const step = (map.max_value - map.min_value) / 255;
  return Float32Array.from(bytes, (byte) => map.min_value + byte * step);
}

/** For each pixel along one axis its two cells and the second one's weight; -1 outside the region. */
function samples([start, stop], cells, [from, to], pixels) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const centre = from + ((pixel + 0.5) * (to - from)) / pixels;
    if (centre < start || centre > stop) return [-1, -1, 0];
    const position = ((centre - start) * cells) / (stop - start) - 0.5;
    const inside = Math.min(cells - 1, Math.max(0, position));
    const lower = Math.floor(inside);
    return [lower, Math.min(lower + 1, cells - 1), inside - lower];
  });
}

/**
 * Enlarge a map to width × height pixels that show a view, [x1, y1, x2, y2], of the picture.
 *
 * Bilinear between the centres of cells, NaN outside the map's region. The same as enlarge() in
 * whybox_proto/maps.py, but for what is outside.
 */
export function enlarge(map, view, width, height) {
  const cells = decode(map);
  const [x1, y1, x2, y2] = map.region;
  const columns = samples([x1, x2], map.width, [view[0], view[2]], width);
  const rows = samples([y1, y2], map.height, [view[1], view[3]], height);
  const pixels = new Float32Array(width * height).fill(NaN);
  rows.forEach(([top, bottom, down], y) => {
    if (top < 0) return;
    columns.forEach(([left, right, across], x) => {
      if (left < 0) return;
      const above = cells[top * map.width + left] * (1 - across) + cells[top * map.width + right] * across;
      const below = cells[bottom * map.width + left] * (1 - across) + cells[bottom * map.width + right] * across;
      pixels[y * width + x] = above * (1 - down) + below * down;
    });
  });
  return pixels;
}

/** The values at both ends of the colours: a signed map's are as far from 0 on either side. */
export function range(map) {
  if (!map.signed) return [map.min_value, map.max_value];
  const largest = Math.max(Math.abs(map.min_value), Math.abs(map.max_value));
  return [-largest, largest];
}

/** A canvas of width × height with a map's colours in a view; where more matters, less of the picture shows. */
export function paint(map, view, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const [low, high] = range(map);
  const floor = map.signed ? 0 : low;
  if (high > low) {
    enlarge(map, view, width, height).forEach((value, pixel) => {
      const level = (value - floor) / (high - floor);
      if (!level || (!map.signed && level < 0)) return; // NaN too
      const [red, green, blue] = map.signed ? diverging(level) : heat(Math.min(1, level));
      // Colour comes in fast and then holds, so that weak heat is seen.
      image.data.set([red, green, blue, 255 * Math.sqrt(Math.min(1, Math.abs(level)))], 4 * pixel);
    });
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Draw the colours of a scale into a canvas, from its left to its right. */
export function drawRamp(canvas, signed) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, 1);
  for (let x = 0; x < canvas.width; x++) {
    const level = x / (canvas.width - 1);
    image.data.set([...(signed ? diverging(2 * level - 1) : heat(level)), 255], 4 * x);
  }
  context.putImageData(image, 0, 0);
}

/** The part of the picture that holds a box and every cell that matters to it, as [x1, y1, x2, y2]. */
export function viewOf(box, maps, size) {
  let [x1, y1, x2, y2] = box;
  for (const map of maps) {
    const [low, high] = range(map);
    const [left, top, right, bottom] = map.region;
    const [cellWidth, cellHeight] = [(right - left) / map.width, (bottom - top) / map.height];
    decode(map).forEach((value, cell) => {
      const share = map.signed ? Math.abs(value) / high : (value - low) / (high - low);
      if (!(share >= 0.25)) return;
      const [column, row] = [cell % map.width, Math.floor(cell / map.width)];
      x1 = Math.min(x1, left + column * cellWidth);
      y1 = Math.min(y1, top + row * cellHeight);
      x2 = Math.max(x2, left + (column + 1) * cellWidth);
      y2 = Math.max(y2, top + (row + 1) * cellHeight);
    });
  }
  // Some of the surroundings, and a shape near a square, so that a row of views reads well.
  const side = 1.25 * Math.max(x2 - x1, y2 - y1);
  const [width, height] = [Math.min(size.width, side), Math.min(size.height, side)];
  const fit = (centre, length, limit) => Math.min(limit - length, Math.max(0, centre - length / 2));
  const [x, y] = [fit((x1 + x2) / 2, width, size.width), fit((y1 + y2) / 2, height, size.height)];
  return [x, y, x + width, y + height];
}
