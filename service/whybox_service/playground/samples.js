// Scenes that come with the page; docs/playground.md says how they were made.

export const SAMPLES = [
  { file: "sample-plain-0.jpg", title: "Six signs on planks" },
  { file: "sample-plain-5.jpg", title: "Signs before a wall" },
  { file: "sample-crowd-0.jpg", title: "Signs that hide each other" },
  { file: "sample-context-1.jpg", title: "Signs that keep company" },
];
