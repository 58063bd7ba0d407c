// The client of the npm package simple-hl7: PORT COUNT. Prints each message and its answer.
const hl7 = require('simple-hl7');

const [port, count] = process.argv.slice(2).map(Number);
const client = hl7.Server.createTcpClient({ host: '127.0.0.1', port, keepalive: true });

function send(number) {
  if (number === count) return client.close();
  const id = `simple-${number}`;
  const message = new hl7.Message('SIMPLE', 'SURG', 'PGW', 'B86022', '20261122101500', '', ['ORU', 'R01'], id, 'P', '2.3');
  message.addSegment('PID', '1', '', ['EX' + number, '', '', 'TEST']);
  message.addSegment('OBX', '1', 'TX', 'NOTE', '', 'x'.repeat(200));
  client.send(message, (error, answer) => {
    if (error) throw error;
    const msa = answer.getSegment('MSA');
    const sent = Buffer.from(message.toString()).toString('base64');
    console.log(JSON.stringify({ sent, id, code: msa.getComponent(1, 1), answered: msa.getComponent(2, 1) }));
    // It can take the next message only after this call has returned.
    setImmediate(send, number + 1);
  });
}

send(0);
