// The colours of the SDK (whybox_client/colors.py), so that both draw the same picture.

// "Turbo" (A. Mikhailov, Google AI, 2019; Apache-2.0) as its author's polynomial, x^0 to x^5, for red, green, blue.
const TURBO = [
  [0.13572138, 4.6153926, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
  [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
  [0.1066733, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
];
// It ends in a dark red that reads as "less" over a photograph: stop where it is still bright.
const TURBO_END = 0.83;

const AGAINST = [33, 102, 172];
const NEUTRAL = [247, 247, 247];
const FOR = [178, 24, 43];

// Paul Tol's "vibrant" and "bright" schemes: apart from each other for colour-blind readers too.
const LABELS = ["#ee7733", "#0077bb", "#33bbee", "#ee3377", "#009988", "#ccbb44", "#aa3377", "#228833"];

const HEAT = Array.from({ length: 256 }, (_, step) => {
  const x = (step / 255) * TURBO_END;
  return TURBO.map((powers) => {
    const value = powers.reduceRight((sum, power) => sum * x + power, 0);
    return Math.round(255 * Math.min(1, Math.max(0, value)));
  });
});

/** RGB of a level in 0..1: blue (little) over green and yellow to red (most). */
export function heat(level) {
  return HEAT[Math.round(level * 255)];
}

/** RGB of a level in -1..1: blue (speaks against) over white to red (speaks for). */
export function diverging(level) {
  const end = level < 0 ? AGAINST : FOR;
  return NEUTRAL.map((neutral, channel) => neutral + (end[channel] - neutral) * Math.abs(level));
}

/** The colour of a label, as CSS. */
export function labelColor(labelId) {
  return LABELS[labelId % LABELS.length];
}
