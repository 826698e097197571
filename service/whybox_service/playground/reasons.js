// Why something is not in the answer, in the SDK's words (whybox_client/why_not.py).

const number = (value) => value.toFixed(2);
const named = ({ label, score }) => `${label} ${number(score)}`;

function inAnswer(index, detections, otherwise) {
  const by = detections.find((detection) => detection.index === index);
  return by ? `detection ${by.index} (${named(by)})` : otherwise;
}

/** Why a candidate was suppressed, as the end of a sentence. */
function reasonOf(suppressed, detections) {
  const { rule, iou, correlation, by_index: index } = suppressed;
  if (rule === "soft" && index === undefined) return "has a score below the final threshold";
  const by = inAnswer(index, detections, "a better box that is not in the answer");
  const told =
    {
      iou: `overlaps ${by}`,
      soft: `overlaps ${by}, so that its score fell below the final threshold`,
      same_object: `is the same object as ${by}`,
      same_evidence: `rests on the same evidence as ${by}`,
    }[rule] ?? `was suppressed by ${by} (${rule})`;
  const alike = correlation === undefined ? "" : `, correlation of the maps ${number(correlation)}`;
  return `${told}: IoU ${number(iou)}${alike}`;
}

/** A suppressed candidate and why, as a sentence. */
export function whySuppressed(suppressed, detections) {
  return `${named(suppressed)} ${reasonOf(suppressed, detections)}`;
}

/** Why an expected object is not in the answer, as a sentence. */
export function whyNot(told, label, detections) {
  const { candidate, reason, suppressed } = told;
  if (!candidate) return `The model has no candidate for '${label}' near the expected box.`;
  const near = told.expected_iou === undefined ? "" : `, IoU ${number(told.expected_iou)} with the expected box`;
  const best = `The best candidate (${named(candidate)}${near})`;
  const by = inAnswer(told.by_index, detections, "a detection");
  const value = (given) => (given === undefined ? "" : ` ${number(given)}`);
  return (
    {
      found: `It is in the answer, as ${by}${near}.`,
      score: `${best} is below the score threshold${value(told.score_threshold)}.`,
      suppressed: `${best} ${suppressed ? reasonOf(suppressed, detections) : `was suppressed by ${by}`}.`,
      outscored: `${best} is taken for '${told.by_label}', which scores${value(told.by_score)}.`,
      limit: `${best} is not in the answer, because better ones filled it.`,
      filtered: `${best} is left out by the selection.`,
    }[reason] ?? `${best} is not in the answer: ${reason}.`
  );
}
