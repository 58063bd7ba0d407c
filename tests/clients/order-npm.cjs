// Sorts CloudEvents by `sequence` as text, read by npm's `cloudevents`; lines in and out as in order_pypi.py.
const { CloudEvent } = require("cloudevents");
const readline = require("node:readline");

const events = [];
readline
  .createInterface({ input: process.stdin, crlfDelay: Infinity })
  .on("line", (line) => {
    const { sequence, chain } = new CloudEvent(JSON.parse(line), true);
    if (typeof sequence !== "string") throw new Error("a sequence is no text");
    events.push([sequence, chain]);
  })
  .on("close", () => {
    events.sort(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0));
    process.stdout.write(events.map(([, chain]) => `${chain}\n`).join(""));
  });
