// Ends of TLS 1.3 connections by Node.js. Each line of stdin is one, in JSON:
// the options of tls.connect or tls.createServer, with names of files in ca,
// cert and key.
//
// Without a port it is a server, which says where it listens, and echoes. With
// one it is a client, which connects as often as connections says, each time
// but the first to resume; every connection sends line, and ends when it has it
// back. Then the client says "done", and what it was.
'use strict';

const fs = require('node:fs');
const readline = require('node:readline');
const tls = require('node:tls');

function serve(options) {
  const server = tls.createServer(options, (conn) => conn.pipe(conn));
  server.on('tlsClientError', (err) => console.error(err.message));
  server.listen(0, '127.0.0.1', () => console.log(`listening on 127.0.0.1:${server.address().port}`));
}

function connect(options) {
  let received = '';
  let session;
  let facts;
  const conn = tls.connect(options, () => {
    facts = `resumed=${conn.isSessionReused()} protocol=${conn.alpnProtocol}`;
    conn.write(options.line);
  });
  const endWhenDone = () => {
    if (received === options.line && (session || options.connections === 1)) conn.end();
  };
  conn.setEncoding('utf8');
  conn.on('session', (s) => { session = s; endWhenDone(); });
  conn.on('data', (data) => { received += data; endWhenDone(); });
  conn.on('error', (err) => { facts = err.message; });
  conn.on('close', () => {
    if (options.connections > 1) {
      connect({ ...options, session, connections: options.connections - 1 });
    } else {
      console.log(`done ${facts} received=${received.length}`);
    }
  });
}

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const options = { minVersion: 'TLSv1.3', ...JSON.parse(line) };
  for (const name of ['ca', 'cert', 'key']) {
    if (options[name]) options[name] = fs.readFileSync(options[name]);
  }
  (options.port === undefined ? serve : connect)(options);
}).on('close', () => process.exit());
