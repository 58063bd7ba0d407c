// The client of the npm package node-hl7-client: PORT COUNT [CA CERTIFICATE KEY]. Prints each message and its answer.
const fs = require('node:fs');
const { Client, HL7_2_5 } = require('node-hl7-client');

const [port, count] = process.argv.slice(2, 4).map(Number);
const [ca, cert, key] = process.argv.slice(4).map((file) => fs.readFileSync(file));
const tls = ca && { ca, cert, key, rejectUnauthorized: true };
const client = new Client({ host: 'localhost', version: '2.5', ...(tls && { tls }) });
const answers = [];
let waiting = null;
const connection = client.createConnection({ port, waitAck: true }, async (answer) => {
  answers.push(answer);
  if (waiting) waiting();
});

async function answered() {
  while (answers.length === 0) await new Promise((resolve) => { waiting = resolve; });
  return answers.shift().getMessage();
}

(async () => {
  for (let number = 0; number < count; number += 1) {
    const id = `node-${port}-${number}`;
    const message = new HL7_2_5()
      .buildMSH({ msh_3: 'NODE', msh_4: 'SURG', msh_5: 'PGW', msh_6: 'B86022', msh_9_1: 'ADT', msh_9_2: 'A01', msh_10: id, msh_11_1: 'P' })
      .buildEVN({ evn_1: 'A01' })
      .buildPID({ pid_3: `EX${number}`, pid_5: 'DOE^JANE^A' })
      .toMessage();
    await connection.sendMessage(message);
    const answer = await answered();
    const sent = Buffer.from(message.toString()).toString('base64');
    console.log(JSON.stringify({ sent, id, code: answer.get('MSA.1').toString(), answered: answer.get('MSA.2').toString() }));
  }
  await connection.close();
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
