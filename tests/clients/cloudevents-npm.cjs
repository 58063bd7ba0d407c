// Builds CloudEvents with npm's `cloudevents` and its MQTT binding from a broker's messages; lines in and out as in
// cloudevents_pypi.py.
const { CloudEvent, MQTT } = require("cloudevents");
const readline = require("node:readline");

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const publish = JSON.parse(line);
  const headers = Object.fromEntries(publish.properties);
  if (Object.keys(headers).length !== publish.properties.length) throw new Error("an attribute occurs twice");
  const body = new Uint8Array(Buffer.from(publish.payload, "base64"));
  const message = { PUBLISH: { "Content Type": publish.content_type }, headers, body };
  if (!MQTT.isEvent(message)) throw new Error("no CloudEvent");
  // The binding leaves Content Type out, and checks nothing: a second, strict event does.
  const event = new CloudEvent({ ...MQTT.toEvent(message, true), datacontenttype: publish.content_type }, true);
  const { data, data_base64, ...attributes } = event;
  const found = Object.fromEntries(Object.entries(attributes).filter(([, value]) => value !== undefined));
  console.log(JSON.stringify({ ...found, data: Buffer.from(data).toString("base64") }));
});
