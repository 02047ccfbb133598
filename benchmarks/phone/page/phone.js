// One module, two roles: the page that a person sees, and the worker that measures one file in one
// way. A worker is to a browser what a fresh process is to a desktop: nothing else runs in it.

const HERE = new URL('./', import.meta.url);
const WARM_RUNS = 10, WARM_MS = 500;      // before the first timed inference
const MOST_SAMPLES = 20000;               // what the server takes
const WINDOWS = 24;                       // of the curve
const EMPTY_MS = 400;                     // time for the file that does nothing
const TOLD_MS = 2000;                     // between two signs of life
const STUCK_MS = 300000;                  // a worker without a word for so long is given up

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
// Five digits after the point: the clock's steps are not finer, and the post is a third as long.
const rounded = (ms) => Math.round(ms * 1e5) / 1e5;
const words = (error) => String(error?.message ?? error).replace(/\s+/g, ' ').slice(0, 200);

async function fetched(name) {
  const response = await fetch(new URL(name, HERE));
  if (!response.ok) throw new Error(`${name}: the server answered ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

// ---- the worker ----

async function measure({ job, file, way }) {
  const say = (doing, share) => postMessage({ doing, share });
  say('load', 0);
  const bytes = await fetched(`files/${file}.onnx`);
  const sha256 = await digest(bytes);
  const [golden, sample, empty] = await Promise.all(
    ['golden.bin', 'sample.bin', 'empty.onnx'].map(fetched));

  const ort = await import(new URL(way.kind === 'webgpu'
    ? 'ort/ort.webgpu.min.mjs' : 'ort/ort.wasm.min.mjs', HERE));
  ort.env.wasm.wasmPaths = new URL('ort/', HERE).href;
  // Fetched here: megabytes over the network are no part of how the runtime starts.
  ort.env.wasm.wasmBinary = await fetched(way.kind === 'webgpu'
    ? 'ort/ort-wasm-simd-threaded.asyncify.wasm' : 'ort/ort-wasm-simd-threaded.wasm');
  ort.env.wasm.numThreads = way.threads;
  ort.env.logLevel = 'error';
  const options = {
    executionProviders: [way.kind],
    graphOptimizationLevel: 'all',
    // A file that is partly on the CPU would pass for one on the GPU.
    ...(way.whole && { extra: { session: { disable_cpu_ep_fallback: '1' } } }),
  };
  const create = (content) => ort.InferenceSession.create(content.slice(), options);
  const tensor = (pixels, shape) => new ort.Tensor('uint8', pixels, [1, ...shape]);

  // The first session starts the runtime, too; that is told apart from loading a file.
  let began = performance.now();
  const nothing = await ort.InferenceSession.create(empty.slice(), {
    ...options, extra: undefined });
  const start_ms = performance.now() - began;
  // On a GPU that file would still be the CPU's: it says nothing of what measuring takes there.
  const overhead_ms = way.kind === 'wasm'
    ? await timed(nothing, [tensor(new Uint8Array(1), [1, 1, 1])], EMPTY_MS) : [];
  await nothing.release();

  began = performance.now();
  const session = await create(bytes);
  const load_ms = performance.now() - began;
  const size = job.input[0] * job.input[1] * job.input[2];
  const images = (pixels, n) => Array.from({ length: n },
    (_, i) => tensor(pixels.slice(i * size, (i + 1) * size), job.input));
  const goldens = images(golden, job.golden);
  const samples = images(sample, job.sample);
  const [input] = session.inputNames, [output] = session.outputNames;
  const answer = async (image) => (await session.run({ [input]: image }))[output].data;

  began = performance.now();
  await answer(goldens[0]);
  const first_ms = performance.now() - began;

  say('golden images', 0.05);
  const logits = [];
  for (const image of goldens) {
    logits.push(Array.from(await answer(image), (x) => (Number.isFinite(x) ? Number(x) : null)));
  }
  const steady = await curve(session, goldens, job, (share) => say('latency', 0.1 + 0.6 * share));
  const named = [];
  for (const image of samples) {
    const data = await answer(image);
    let best = 0;
    for (let i = 1; i < data.length; i += 1) if (data[i] > data[best]) best = i;
    named.push(best);
    if (named.length % 8 === 0) say('test images', 0.7 + 0.3 * named.length / samples.length);
  }
  await session.release();
  return { sha256, start_ms: rounded(start_ms), load_ms: rounded(load_ms),
    first_ms: rounded(first_ms), overhead_ms, clock_ms: clock(), ...steady,
    golden: logits, named };
}

async function digest(bytes) {
  const found = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(found, (x) => x.toString(16).padStart(2, '0')).join('');
}

function clock() {
  // The least difference that the browser's clock shows; browsers make it coarse on purpose.
  let least = Infinity;
  for (let i = 0; i < 20; i += 1) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return rounded(least);
}

async function timed(session, images, ms) {
  const [input] = session.inputNames;
  const found = [];
  const until = performance.now() + ms;
  while (performance.now() < until && found.length < MOST_SAMPLES) {
    const began = performance.now();
    await session.run({ [input]: images[found.length % images.length] });
    found.push(rounded(performance.now() - began));
  }
  return found.slice(Math.min(WARM_RUNS, found.length >> 1));
}

async function curve(session, images, job, say) {
  // Latency from the first steady_s seconds after warming up; the curve from all of sustain_s,
  // of which those are the beginning. No pause between: a phone that gets warm slows down.
  const [input] = session.inputNames;
  const run = async (i) => {
    const began = performance.now();
    await session.run({ [input]: images[i % images.length] });
    return rounded(performance.now() - began);
  };
  const warm = performance.now();
  for (let i = 0; i < WARM_RUNS || performance.now() - warm < WARM_MS; i += 1) await run(i);

  const whole = Math.max(job.steady_s, job.sustain_s) * 1000;
  const length = whole / WINDOWS;
  const samples = [], curve_ms = [], curve_s = [];
  const began = performance.now();
  let edge = began + length, block = [], told = began;
  for (let i = 0; ; i += 1) {
    const took = await run(i);
    const now = performance.now();
    block.push(took);
    if (now - began <= job.steady_s * 1000 || !samples.length) {
      if (samples.length < MOST_SAMPLES) samples.push(took);
    }
    if (now >= edge) {
      curve_ms.push(median(block));
      curve_s.push(rounded((now - began) / 1000));
      block = [];
      edge += length * Math.ceil((now - edge + 1e-9) / length);
    }
    if (now - told > TOLD_MS / 2) {
      told = now;
      say((now - began) / whole);
    }
    if (now - began >= whole) break;
  }
  return { samples_ms: samples, curve_ms, curve_s };
}

function median(values) {
  const sorted = values.slice().sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : rounded((sorted[middle - 1] + sorted[middle]) / 2);
}

// ---- the page ----

const at = (id) => document.getElementById(id);

function trouble(text) {
  at('trouble').textContent = text;
  at('trouble').hidden = false;
}

async function posted(name, body) {
  let last;
  for (let attempt = 0; attempt < 3; attempt += 1) {
    try {
      const response = await fetch(new URL(name, HERE), {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify(body),
      });
      const told = await response.json();
      if (!response.ok) throw Object.assign(new Error(told.error), { final: true });
      return told;
    } catch (error) {
      if (error.final) throw error;
      last = error;
      await sleep(1000 * (attempt + 1));
    }
  }
  throw last;
}

async function describe() {
  // The name of a phone is told by Chromium only, and only when asked; others say what they are.
  const agent = navigator.userAgent;
  const hints = await navigator.userAgentData?.getHighEntropyValues(
    ['model', 'platformVersion', 'fullVersionList']).catch(() => null);
  const brands = hints?.fullVersionList?.filter((x) => !/not.?a.?brand/i.test(x.brand)) ?? [];
  const brand = brands.find((x) => x.brand !== 'Chromium') ?? brands[0];
  const ios = /(iPhone|iPad).*? OS ([\d_]+)/.exec(agent);
  const android = /Android ([\d.]+); ([^;)]+)/.exec(agent);
  const other = /(Firefox|FxiOS|CriOS|Version|Chrome)\/([\d.]+)/.exec(agent);
  const names = { Version: 'Safari', FxiOS: 'Firefox', CriOS: 'Chrome' };
  const system = hints ? `${hints.platform} ${hints.platformVersion ?? ''}`.trim()
    : ios ? `iOS ${ios[2].replaceAll('_', '.')}`
      : android ? `Android ${android[1]}` : navigator.platform || 'unknown system';
  const browser = brand ? `${brand.brand} ${brand.version}`
    : other ? `${names[other[1]] ?? other[1]} ${other[2]}` : 'unknown browser';
  // Safari on an iPad says that it is a Mac; no Mac has a touch screen.
  const pad = /Mac/.test(navigator.platform) && navigator.maxTouchPoints > 1 ? 'iPad' : '';
  const named = /^(K|Mobile|Tablet)$/.test(android?.[2] ?? '') ? 'Android device' : android?.[2];
  const device = hints?.model || ios?.[1] || pad || named || `${system} device`;
  return { device: device.slice(0, 200), system: system.slice(0, 200), browser: browser.slice(0, 200) };
}

async function adapter() {
  try {
    return await navigator.gpu?.requestAdapter() ?? null;
  } catch {
    return null;
  }
}

async function possible() {
  // In which ways this browser can run files, and what to say of the others.
  const cores = navigator.hardwareConcurrency || 1;
  const facts = [['cores', `${cores}`]];
  if (navigator.deviceMemory) facts.push(['memory', `at least ${navigator.deviceMemory} GB`]);
  const ways = [{ kind: 'wasm', threads: 1, how: 'wasm, 1 thread' }];
  if (!crossOriginIsolated) facts.push(['threads', 'not allowed to this page']);
  else if (cores > 1) {
    const threads = Math.min(4, cores);
    ways.push({ kind: 'wasm', threads, how: `wasm, ${threads} threads` });
  }
  const gpu = await adapter();
  if (gpu) {
    const { vendor, architecture, description } = gpu.info ?? {};
    facts.push(['GPU', description || [vendor, architecture].filter(Boolean).join(' ') || 'unnamed']);
    ways.push({ kind: 'webgpu', threads: 1, whole: true, how: 'WebGPU' });
  } else {
    facts.push(['WebGPU', 'not in this browser']);
  }
  return { ways, facts };
}

function work(task, heard) {
  // Resolves to what the worker found; rejects with the reason.
  return new Promise((done, failed) => {
    const worker = new Worker(import.meta.url, { type: 'module' });
    let clock;
    const end = (settle, value) => {
      clearTimeout(clock);
      worker.terminate();
      settle(value);
    };
    const watch = () => {
      clearTimeout(clock);
      clock = setTimeout(() => end(failed, new Error(
        `nothing was heard of it for ${STUCK_MS / 1000} s`)), STUCK_MS);
    };
    watch();
    worker.onmessage = ({ data }) => {
      watch();
      if (data.found) end(done, data.found);
      else if (data.error) end(failed, new Error(data.error));
      else heard(data);
    };
    worker.onerror = (event) => end(failed, new Error(event.message || 'the worker failed'));
    worker.postMessage(task);
  });
}

async function measured(task, heard) {
  // On a GPU at first whole; where the runtime refuses that, with parts on the CPU, and said so.
  try {
    return { how: task.way.how, ...await work(task, heard) };
  } catch (error) {
    if (!task.way.whole || !/fallback|assigned|not supported|no kernel/i.test(words(error))) throw error;
    const way = { ...task.way, whole: false };
    return { how: `${way.how}, parts on the CPU`, ...await work({ ...task, way }, heard) };
  }
}

const NOTHING = { start_ms: null, load_ms: null, first_ms: null, samples_ms: [], overhead_ms: [],
  clock_ms: null, curve_ms: [], curve_s: [], golden: [], named: [] };

async function main() {
  const job = await (await fetch(new URL('job.json', HERE))).json();
  document.title = `${job.run} · Pocket Distillery`;
  at('run').textContent = `Run “${job.run}” on this phone`;
  const phone = identity();
  const own = await describe();
  const { ways, facts } = await possible();
  showFacts([['device', own.device], ['system', own.system], ['browser', own.browser], ...facts]);
  await posted('hello', { phone, ...own, ways: ways.length,
    facts: facts.map(([name, value]) => `${name}: ${value}`.slice(0, 200)) });
  await awake();

  let hidden = document.hidden, now = { doing: '', share: 0 };
  document.addEventListener('visibilitychange', () => { hidden ||= document.hidden; awake(); });
  const alive = setInterval(() => posted('progress', { phone, ...now }).catch(() => {}), TOLD_MS);
  const total = ways.length * job.files.length;
  let done = 0;
  for (const [file, { title, sha256 }] of job.files.entries()) {
    for (const way of ways) {
      hidden = document.hidden;
      const base = { phone, file, kind: way.kind };
      const heard = ({ doing, share }) => {
        now = { doing: `${title}, ${way.how}: ${doing}`.slice(0, 200),
          share: Math.min(1, (done + share) / total) };
        at('doing').textContent = `${done + 1} of ${total}: ${now.doing}`;
        at('bar').value = now.share;
      };
      let figures;
      try {
        const found = await measured({ job, file, way }, heard);
        figures = { ...base, error: null, hidden, ...found };
      } catch (error) {
        figures = { ...base, ...NOTHING, how: way.how, sha256, error: words(error), hidden };
      }
      done += 1;
      try {
        show(title, await posted('figures', figures));
      } catch (error) {
        trouble(`The server did not take the figures of ${title}: ${words(error)}`);
      }
    }
  }
  clearInterval(alive);
  await posted('goodbye', { phone });
  at('bar').value = 1;
  at('doing').textContent = 'Done. The figures go into the run’s report; this page can be closed.';
  at('hint').hidden = true;
  document.documentElement.dataset.state = 'done';
}

function identity() {
  // Kept in this tab: a page that is loaded again is the same phone, which begins anew.
  const random = Array.from(crypto.getRandomValues(new Uint8Array(8)),
    (x) => x.toString(16).padStart(2, '0')).join('');
  try {
    const kept = sessionStorage.getItem('phone') ?? random;
    sessionStorage.setItem('phone', kept);
    return kept;
  } catch {  // a browser that forbids it
    return random;
  }
}

let lock = null;
async function awake() {
  // A screen that goes dark would stop the measurement half-way.
  if (document.hidden || !navigator.wakeLock || (lock && !lock.released)) return;
  lock = await navigator.wakeLock.request('screen').catch(() => null);
}

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function showFacts(pairs) {
  for (const [name, value] of pairs) {
    const row = element('div');
    row.append(element('dt', name), element('dd', value));
    at('facts').append(row);
  }
}

const number = (ms) => (ms === null ? '–'
  : ms.toFixed(ms >= 100 ? 0 : ms >= 10 ? 1 : ms >= 1 ? 2 : 3));
const tables = new Map();

function show(title, told) {
  at('found').hidden = false;
  if (!tables.has(title)) {
    const table = element('table'), head = element('tr');
    for (const name of ['', 'p50', 'p90', 'p99', 'load']) head.append(element('th', name));
    table.append(element('thead'), element('tbody'));
    table.tHead.append(head);
    const check = element('p', '', 'check');
    at('tables').append(element('h3', title), table, check);
    tables.set(title, { body: table.tBodies[0], check });
  }
  const { body, check } = tables.get(title);
  const row = element('tr');
  row.append(element('th', told.how));
  if (told.skipped) {
    const why = element('td', told.skipped, 'why');
    why.colSpan = 4;
    row.append(why);
  } else {
    row.append(element('td', number(told.p50_ms), 'main'), element('td', number(told.p90_ms)),
      element('td', number(told.p99_ms)), element('td', number(told.load_ms)));
    judge(check, told);
  }
  body.append(row);
}

function judge(check, told) {
  const parts = [];
  if (told.golden) parts.push(`${told.golden[0]} of ${told.golden[1]} golden answers as expected`);
  if (told.top1 !== null) {
    parts.push(`${(100 * told.top1).toFixed(1)} % of ${told.images} test images right`);
  }
  const good = !told.golden || told.golden[0] === told.golden[1];
  if (check.classList.contains('bad')) return;  // one way that answers wrongly is told, whichever
  check.className = `check ${good ? 'good' : 'bad'}`;
  check.textContent = (good ? '' : `${told.how}: `) + parts.join('; ');
}

if (typeof document === 'undefined') {
  onmessage = ({ data }) => measure(data).then(
    (found) => postMessage({ found }), (error) => postMessage({ error: words(error) || 'unknown' }));
} else {
  main().catch((error) => {
    trouble(`It went wrong: ${words(error)}. Loading the page again starts anew.`);
    document.documentElement.dataset.state = 'failed';
  });
}
