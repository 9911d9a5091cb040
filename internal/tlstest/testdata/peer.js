// One end of a TLS 1.3 connection by Node.js. The only argument is JSON: the
// options of tls.connect or tls.createServer, with names of files in ca, cert,
// key and session, and with saveSession, a file for a client's session. A server says where it listens, and echoes. A client says when it is
// connected, and sends what it reads.
'use strict';

const fs = require('node:fs');
const tls = require('node:tls');

const options = { minVersion: 'TLSv1.3', ...JSON.parse(process.argv[2]) };
for (const name of ['ca', 'cert', 'key', 'session']) {
  if (options[name]) options[name] = fs.readFileSync(options[name]);
}

if (options.port === undefined) {
  const server = tls.createServer(options, (conn) => {
    conn.pipe(conn);
  });
  server.on('tlsClientError', (err) => console.error(err.message));
  server.listen(0, '127.0.0.1', () => console.log(`listening on 127.0.0.1:${server.address().port}`));
} else {
  const conn = tls.connect(options, () => {
    console.log(`connected, protocol: ${conn.alpnProtocol}`);
    process.stdin.pipe(conn);
    conn.pipe(process.stdout);
  });
  conn.on('session', (session) => {
    if (!options.saveSession) return;
    fs.writeFileSync(options.saveSession, session);
    console.log('has a session');
  });
}
