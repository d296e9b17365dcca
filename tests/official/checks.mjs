// Every method of the official JavaScript SDK against a server: one JSON line per check on stdout.
//
//     node checks.mjs BASE_URL API_KEY
//
// A check is {"check": name, "ok": true} or {"check": name, "ok": false, "error": text}. test_javascript_sdk.py
// runs this once and makes a test of each line; the names are listed there too.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';

import * as hopx from '@hopx-ai/sdk';

const [baseURL, apiKey] = process.argv.slice(2);
const place = { baseURL, apiKey };
const PATIENCE = 50_000; // milliseconds: only to fail, never to measure
const { Sandbox } = hopx;

console.log = console.error; // stdout is for the checks alone; the SDK talks there

const checks = {};
const sandboxes = [];

async function create(options = {}) {
  const sandbox = await Sandbox.create({ template: 'code-interpreter', ...place, ...options });
  sandboxes.push(sandbox);
  return sandbox;
}

async function until(look, holds) {
  for (const limit = Date.now() + PATIENCE; ; await sleep(20)) {
    const seen = await look();
    if (holds(seen)) return seen;
    assert.ok(Date.now() < limit, `never came about; last seen: ${JSON.stringify(seen)}`);
  }
}

async function row(sandbox, id) {
  return (await sandbox.listProcesses()).find((process) => process.process_id === id);
}

async function refused(promise, type, properties = {}) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof type, `${error?.constructor?.name}: ${error?.message}`);
    for (const [name, value] of Object.entries(properties)) assert.equal(error[name], value);
    return true;
  });
}

// --- the control plane -------------------------------------------------------------------------------------

checks.health_check = async () => {
  assert.equal((await Sandbox.healthCheck(baseURL)).status, 'healthy');
};

checks.templates = async () => {
  const names = (await Sandbox.listTemplates(place)).map((template) => template.name);
  assert.ok(names.includes('code-interpreter'));
  const byName = await Sandbox.getTemplate('code-interpreter', place);
  assert.deepEqual(await Sandbox.getTemplate(byName.id, place), byName);
  assert.equal((await Sandbox.getTemplate('base', place)).id, byName.id);
  assert.equal(byName.isActive, true);
  const sandbox = await create({ template: undefined, templateId: byName.id });
  assert.equal((await sandbox.getInfo()).templateId, byName.id);
};

checks.info = async () => {
  const sandbox = await create({ timeoutSeconds: 900, internetAccess: false });
  const info = await sandbox.getInfo();
  assert.equal(info.sandboxId, sandbox.sandboxId);
  assert.equal(info.status, 'running');
  assert.equal(info.templateName, 'code-interpreter');
  assert.equal(info.timeoutSeconds, 900);
  assert.ok(info.publicHost.startsWith(`${baseURL}/`));
  assert.ok(info.resources.vcpu > 0 && info.resources.memoryMb > 0 && info.resources.diskMb > 0);
};

checks.list_and_iter = async () => {
  const sandbox = await create();
  const listed = await Sandbox.list(place);
  assert.ok(listed.some((other) => other.sandboxId === sandbox.sandboxId));
  const iterated = [];
  for await (const other of Sandbox.iter({ ...place, status: 'running' })) iterated.push(other.sandboxId);
  assert.ok(iterated.includes(sandbox.sandboxId));
  assert.equal(new Set(iterated).size, iterated.length);
  assert.equal((await Sandbox.list({ ...place, limit: 1 })).length, 1);
};

checks.connect = async () => {
  const sandbox = await create();
  await sandbox.files.write('/workspace/left.txt', 'here');
  const other = await Sandbox.connect(sandbox.sandboxId, apiKey, baseURL);
  assert.equal(await other.files.read('/workspace/left.txt'), 'here');
  assert.equal(await sandbox.files.read('/workspace/left.txt'), 'here'); // its older token is still good
};

checks.pause_and_resume = async () => {
  const sandbox = await create();
  await sandbox.pause();
  assert.equal((await sandbox.getInfo()).status, 'paused');
  await sandbox.resume();
  assert.equal((await sandbox.getInfo()).status, 'running');
  assert.equal((await sandbox.runCode('print(1)')).stdout, '1\n');
};

checks.connect_when_paused = async () => {
  const sandbox = await create();
  await sandbox.pause();
  const other = await Sandbox.connect(sandbox.sandboxId, apiKey, baseURL);
  assert.equal((await other.getInfo()).status, 'running');
};

checks.timeout_and_expiry = async () => {
  const sandbox = await create();
  assert.equal(await sandbox.getTimeToExpiry(), null);
  assert.equal((await sandbox.getExpiryInfo()).hasTimeout, false);
  await sandbox.setTimeout(200);
  const left = await sandbox.getTimeToExpiry();
  assert.ok(left > 0 && left <= 200, `${left}`);
  assert.equal(await sandbox.isExpiringSoon(), true);
  await sandbox.setTimeout(100_000);
  assert.equal((await sandbox.getExpiryInfo()).isExpiringSoon, false);
};

checks.tokens = async () => {
  const sandbox = await create();
  const first = await sandbox.getToken();
  await sandbox.refreshToken();
  const second = await sandbox.getToken();
  assert.notEqual(first, second);
  for (const token of [first, second]) {
    const { publicHost } = await sandbox.getInfo();
    const reply = await fetch(`${publicHost}/env`, { headers: { Authorization: `Bearer ${token}` } });
    assert.equal(reply.status, 200);
  }
};

checks.no_refresh_storm = async () => {
  const sandbox = await create();
  const token = await sandbox.getToken();
  for (let n = 0; n < 3; n++) await sandbox.env.getAll();
  assert.equal(await sandbox.getToken(), token); // it would be another if less than an hour were left
};

checks.kill = async () => {
  const sandbox = await create();
  await sandbox.kill();
  await refused(sandbox.getInfo(), hopx.SandboxExpiredError);
  assert.ok(!(await Sandbox.list(place)).some((other) => other.sandboxId === sandbox.sandboxId));
};

// --- errors -------------------------------------------------------------------------------------------------

checks.bad_key = async () => {
  await refused(Sandbox.create({ template: 'base', baseURL, apiKey: 'wrong' }), hopx.AuthenticationError);
};

checks.unknown_sandbox = async () => {
  await refused(Sandbox.connect('sb_unknown', apiKey, baseURL), hopx.SandboxExpiredError);
};

checks.unknown_template = async () => {
  const refusal = { code: 'RESOURCE_NOT_FOUND', statusCode: 404 };
  await refused(Sandbox.getTemplate('no-such', place), hopx.APIError, refusal);
  await refused(create({ template: 'no-such' }), hopx.APIError, refusal);
};

checks.unknown_process = async () => {
  const sandbox = await create();
  const refusal = { code: 'PROCESS_NOT_FOUND', statusCode: 404 };
  await refused(sandbox.killProcess('bg_unknown'), hopx.APIError, refusal);
};

checks.unknown_file = async () => {
  const sandbox = await create();
  await refused(sandbox.files.read('/workspace/none'), hopx.FileNotFoundError);
  await refused(sandbox.files.readBytes('/workspace/none'), hopx.HopxError);
  // "sandbox" in a text that says "not found" is an expired sandbox to this client
  await refused(sandbox.files.read('/workspace/sandbox.txt'), hopx.FileNotFoundError);
};

checks.forbidden_path = async () => {
  const sandbox = await create();
  await refused(sandbox.files.read('/etc/passwd'), hopx.APIError, { code: 'FORBIDDEN', statusCode: 403 });
};

checks.bad_language = async () => {
  const sandbox = await create();
  await refused(sandbox.runCode('x', { language: 'cobol' }), hopx.APIError, { statusCode: 400 });
};

checks.execution_timeout = async () => {
  const sandbox = await create();
  const run = sandbox.runCode('import time; time.sleep(600)', { timeout: 1 });
  await refused(run, hopx.APIError, { code: 'EXECUTION_TIMEOUT', statusCode: 408 });
};

// --- code ---------------------------------------------------------------------------------------------------

checks.run_code = async () => {
  const sandbox = await create();
  const result = await sandbox.runCode('print(6 * 7)');
  assert.equal(result.stdout, '42\n');
  assert.equal(result.exitCode, 0);
  assert.equal(result.success, true);
  assert.match(result.toString(), /time=\d/);
  const environment = { env: { WHO: 'x' }, language: 'bash' };
  assert.equal((await sandbox.runCode('echo $WHO', environment)).stdout, 'x\n');
  assert.equal((await sandbox.runCode('console.log(1 + 1)', { language: 'javascript' })).stdout, '2\n');
  const preflight = await sandbox.runCode('print("ready")', { preflight: true });
  assert.equal(preflight.stdout, 'ready\n');
};

checks.run_code_that_fails = async () => {
  const sandbox = await create();
  const result = await sandbox.runCode('import sys; print("why", file=sys.stderr); sys.exit(3)');
  assert.equal(result.success, false);
  assert.equal(result.failed, true);
  assert.equal(result.exitCode, 3);
  assert.equal(result.stderr, 'why\n');
};

checks.working_dir = async () => {
  const sandbox = await create();
  await sandbox.files.mkdir('/workspace/inner');
  const code = 'import os; print(os.path.basename(os.getcwd()))';
  assert.equal((await sandbox.runCode(code, { workingDir: '/workspace/inner' })).stdout, 'inner\n');
};

checks.background = async () => {
  const sandbox = await create();
  const options = { name: 'build', env: { A: '7' } };
  const started = await sandbox.runCodeBackground('import os; print(os.environ["A"])', options);
  assert.match(started.process_id, /^bg_/);
  assert.ok(started.execution_id);
  const ended = await until(
    () => row(sandbox, started.process_id),
    (process) => process?.status === 'completed',
  );
  assert.equal(ended.name, 'build');
  assert.equal(ended.exit_code, 0);
  assert.equal(ended.stdout, '7\n');
  assert.ok(ended.started_at && ended.end_time && ended.duration >= 0 && ended.execution_time >= 0);
  await sandbox.killProcess(started.process_id); // one that ended already: nothing to complain about
  assert.equal((await row(sandbox, started.process_id)).status, 'completed');
};

checks.many_in_the_background = async () => {
  const sandbox = await create();
  const numbers = [...Array(50).keys()];
  const started = await Promise.all(
    numbers.map((n) => sandbox.runCodeBackground(`print(${n})`, { name: `n${n}` })),
  );
  const rows = await until(
    () => sandbox.listProcesses(),
    (all) => all.every((process) => process.status === 'completed'),
  );
  assert.equal(rows.length, numbers.length);
  const ids = (list) => list.map((process) => process.process_id).sort();
  assert.deepEqual(ids(rows), ids(started));
  for (const process of rows) assert.equal(process.stdout, `${process.name.slice(1)}\n`);
};

checks.kill_process = async () => {
  const sandbox = await create();
  const started = await sandbox.runCodeBackground('import time; time.sleep(600)');
  await sandbox.killProcess(started.process_id);
  const killed = await row(sandbox, started.process_id);
  assert.equal(killed.status, 'killed');
};

checks.run_code_async = async () => {
  const sandbox = await create();
  const received = [];
  const server = createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    received.push({ headers: request.headers, body: Buffer.concat(parts).toString() });
    response.end('{}');
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const accepted = await sandbox.runCodeAsync('print("told")', {
      callbackUrl: `http://127.0.0.1:${server.address().port}/hook`,
      callbackHeaders: { 'X-Mine': 'yes' },
      callbackSignatureSecret: 'secret',
    });
    assert.ok(accepted.execution_id);
    await until(async () => received.length, (count) => count > 0);
    const [{ headers, body }] = received;
    const signed = headers['x-hopx-timestamp'] + body;
    const signature = createHmac('sha256', 'secret').update(signed).digest('hex');
    assert.equal(headers['x-hopx-signature'], `sha256=${signature}`);
    assert.equal(headers['x-mine'], 'yes');
    const told = JSON.parse(body);
    assert.equal(told.execution_id, accepted.execution_id);
    assert.equal(told.status, 'completed');
    assert.equal(told.stdout, 'told\n');
    assert.equal(told.exit_code, 0);
  } finally {
    server.close();
  }
};

checks.run_code_stream = async () => {
  const sandbox = await create();
  const code = 'import sys; print("out"); print("err", file=sys.stderr)';
  const frames = [];
  for await (const frame of sandbox.runCodeStream(code)) frames.push(frame);
  const text = (type) => frames.filter((frame) => frame.type === type).map((frame) => frame.data).join('');
  assert.equal(text('stdout'), 'out\n');
  assert.equal(text('stderr'), 'err\n');
  assert.equal(frames.find((frame) => frame.type === 'result').exit_code, 0);
  assert.deepEqual(frames.at(-1), { ...frames.at(-1), type: 'complete', success: true });
};

checks.watch_files = async () => {
  const sandbox = await create();
  const changes = sandbox.watchFiles('/workspace');
  let seen;
  const next = changes.next().then(({ value }) => (seen = value));
  next.catch(() => {});
  // There is no frame that says that the watch has begun, so files are written until one is told of.
  for (let n = 0, limit = Date.now() + PATIENCE; !seen && Date.now() < limit; n++) {
    await sandbox.files.write(`/workspace/new-${n}.txt`, 'x');
    await Promise.race([next, sleep(200)]);
  }
  assert.equal(seen.type, 'change');
  assert.match(seen.path, /^\/workspace\/new-\d+\.txt$/);
  assert.ok(['created', 'modified'].includes(seen.event), seen.event);
};

checks.terminal = async () => {
  const sandbox = await create();
  const socket = await sandbox.terminal.connect();
  sandbox.terminal.resize(socket, 100, 40);
  sandbox.terminal.sendInput(socket, 'echo $((40 + 2)); stty size; exit 5\n');
  const frames = [];
  for await (const frame of sandbox.terminal.output(socket)) frames.push(frame);
  const text = frames.filter((frame) => frame.type === 'output').map((frame) => frame.data).join('');
  assert.match(text, /42/);
  assert.match(text, /40 100/);
  assert.deepEqual(frames.at(-1), { ...frames.at(-1), type: 'exit', code: 5 });
};

// --- commands, files, variables, the rest -------------------------------------------------------------------

checks.commands = async () => {
  const sandbox = await create();
  const ran = await sandbox.commands.run('echo $A; exit 4', { env: { A: 'b c' } });
  assert.equal(ran.stdout, 'b c\n');
  assert.equal(ran.exit_code, 4);
  assert.equal(ran.success, false);
  const started = await sandbox.commands.runBackground('echo later');
  const ended = await until(
    () => row(sandbox, started.process_id),
    (process) => process?.status === 'completed',
  );
  assert.equal(ended.stdout, 'later\n');
  assert.match(ended.command, /echo later/);
  const other = await sandbox.commands.run('sleep 600', { background: true });
  assert.equal((await row(sandbox, other.process_id)).process_id, other.process_id);
};

checks.files = async () => {
  const sandbox = await create();
  const { files } = sandbox;
  await files.write('/workspace/a & b#+%.txt', 'wörds\n');
  assert.equal(await files.read('/workspace/a & b#+%.txt'), 'wörds\n');
  await files.mkdir('/workspace/deep/er');
  const listed = await files.list('/workspace');
  assert.deepEqual(listed.map((file) => [file.name, file.isDir]), [
    ['a & b#+%.txt', false],
    ['deep', true],
  ]);
  assert.ok(listed[0].isFile && listed[0].modifiedTime && listed[0].permissions);
  assert.equal(await files.exists('/workspace/deep'), true);
  await files.remove('/workspace/deep');
  assert.equal(await files.exists('/workspace/deep'), false);
};

checks.file_bytes = async () => {
  const { files } = await create();
  const bytes = Buffer.from([0, 255, 128, 10, 13, 0]);
  await files.writeBytes('/workspace/raw', bytes);
  assert.deepEqual(await files.readBytes('/workspace/raw'), bytes);
  assert.deepEqual(await files.download('/workspace/raw'), bytes);
  await files.write('/workspace/looks', 'aGVsbG8='); // text that could be base64 stays what it is
  assert.equal((await files.readBytes('/workspace/looks')).toString(), 'aGVsbG8=');
};

checks.file_overwrite = async () => {
  const { files } = await create();
  await files.write('/workspace/once', '1');
  await refused(files.write('/workspace/once', '2', { overwrite: false }), hopx.HopxError);
  assert.equal(await files.read('/workspace/once'), '1');
};

checks.upload = async () => {
  const { files } = await create();
  const bytes = Buffer.alloc(3_000_000, 'line of a file\r\n');
  await writeFile('upload.bin', bytes);
  await files.upload('upload.bin', '/workspace/in/upload.bin');
  assert.deepEqual(await files.download('/workspace/in/upload.bin'), await readFile('upload.bin'));
};

checks.env = async () => {
  const sandbox = await create({ envVars: { STAGE: 'dev', API_KEY: 'secret' } });
  const { env } = sandbox;
  assert.deepEqual(await env.getAll(), { STAGE: 'dev', API_KEY: 'secret' });
  assert.equal((await sandbox.runCode('import os; print(os.environ["STAGE"])')).stdout, 'dev\n');
  await env.set('MORE', '1');
  await env.delete('STAGE');
  assert.deepEqual(await env.getAll(), { API_KEY: 'secret', MORE: '1' });
  assert.equal(await env.get('MORE'), '1');
  assert.deepEqual(await env.update({ MORE: '2' }), { API_KEY: 'secret', MORE: '2' });
  assert.deepEqual(await env.setAll({ ONLY: 'x' }), { ONLY: 'x' });
};

checks.cache = async () => {
  const { cache } = await create();
  assert.equal((await cache.stats()).cache.size, 0);
  assert.ok((await cache.clear()).message);
};

checks.agent = async () => {
  const sandbox = await create();
  assert.equal(await sandbox.isHealthy(), true);
  await sandbox.ensureHealthy();
  assert.ok((await sandbox.getHealth()).features.languages.includes('python'));
  assert.equal((await sandbox.getAgentInfo()).vm_id, sandbox.sandboxId);
  assert.equal((await sandbox.getMetricsSnapshot()).error_count, 0);
  assert.ok((await sandbox.getAgentMetrics()).requests_total > 0);
  assert.deepEqual(await sandbox.getJupyterSessions(), []);
};

checks.system_processes = async () => {
  const sandbox = await create();
  const started = await sandbox.runCodeBackground('import time; time.sleep(600)');
  const listed = await sandbox.listSystemProcesses();
  assert.ok(listed.some((process) => process.process_id === started.process_id));
};

// --- running them -------------------------------------------------------------------------------------------

async function attempt(check) {
  const late = new AbortController();
  const limit = sleep(PATIENCE, null, { signal: late.signal }).then(() => {
    throw new Error('took too long');
  });
  limit.catch(() => {});
  try {
    await Promise.race([check(), limit]);
    return { ok: true };
  } catch (error) {
    return { ok: false, error: `${error?.stack ?? error}` };
  } finally {
    late.abort();
  }
}

async function run([name, check]) {
  process.stdout.write(`${JSON.stringify({ check: name, ...(await attempt(check)) })}\n`);
}

await Promise.all(Object.entries(checks).map(run));
await Promise.allSettled(sandboxes.map((sandbox) => sandbox.kill()));
process.exit(0); // sockets that the SDK leaves open would keep it
