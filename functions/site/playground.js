// The playground: requests images, shows their progress, and lists the generations of the caller.
// The key is kept in the memory of this page, and in sessionStorage if the user chooses so. Texts from
// the server are shown as text, never as markup.

const BASE = new URL(".", import.meta.url); // works under a stage, a custom domain and a proxy
const KEPT = "imagegen-key";
const TRIES = 3; // of one request, all with the same Idempotency-Key
const SOON = 1000, LATER = 5000; // milliseconds between two requests for a generation
const ENDED = new Set(["completed", "failed", "cancelled"]);
const WORDS = {queued: "Queued", in_progress: "In progress", completed: "Completed", failed: "Failed", cancelled: "Cancelled"};

const $ = (id) => document.getElementById(id);
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const session = {key: null, models: [], attempt: null, last: null};
const cards = new Map(); // by generation id: its element, and the last known generation object

// -------------------------------------------------------------------- the API

class Failure extends Error {
  constructor(message, {code = null, param = null, status = 0, again = false, requestId = null, delay = 0} = {}) {
    super(message);
    Object.assign(this, {code, param, status, again, requestId, delay});
  }
}

/** Returns the decoded answer. Throws a Failure; its `again` says whether the same request may be sent again. */
async function call(method, path, {body, headers = {}} = {}) {
  const authorization = {Authorization: `Bearer ${session.key}`};
  const type = body ? {"Content-Type": "application/json"} : {};
  let response, answer;
  try {
    response = await fetch(new URL(`v1/${path}`, BASE), {
      method, body, headers: {...authorization, ...type, ...headers}, cache: "no-store", referrerPolicy: "no-referrer",
    });
    answer = await response.json();
  } catch {
    throw new Failure(response ? `The server answered ${response.status} without JSON.` : "The server could not be reached.",
      {again: !response || response.ok || response.status >= 502, status: response?.status});
  }
  if (response.ok) return answer;
  const shouldRetry = response.headers.get("x-should-retry");
  throw new Failure(answer.error?.message ?? `The server answered ${response.status}.`, {
    code: answer.error?.code,
    param: answer.error?.param,
    status: response.status,
    again: shouldRetry ? shouldRetry === "true" : [408, 429, 502, 503, 504].includes(response.status),
    requestId: response.headers.get("x-request-id"),
    delay: 1000 * Number(response.headers.get("Retry-After") ?? 0),
  });
}

/** Begins a generation and returns its id. After a failure, the same body attaches to the same generation. */
async function begin(body) {
  if (session.attempt?.body !== body) session.attempt = {body, key: newKey()};
  const headers = {Prefer: "respond-async", "Idempotency-Key": session.attempt.key};
  for (let left = TRIES - 1; ; left -= 1) {
    try {
      const answer = await call("POST", "images/generations", {body, headers});
      session.attempt = null;
      return answer.id;
    } catch (failure) {
      if (!failure.again) session.attempt = null;
      if (!failure.again || !left || failure.delay > 10 * LATER) throw failure;
      await sleep(failure.delay || SOON);
    }
  }
}

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `playground-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

// -------------------------------------------------------------------- the key

async function connect(key) {
  session.key = key;
  clearError();
  try {
    const models = await call("GET", "models");
    session.models = models.data.filter((model) => model.operations.includes("generate"));
    await reload();
  } catch (failure) {
    session.key = null;
    showError(failure);
    return;
  }
  remember($("keep-key").checked ? key : null);
  $("key").value = "";
  offerModels();
  setConnected(true);
  news("Connected.");
  $("prompt").focus();
}

function forget() {
  remember(null);
  Object.assign(session, {key: null, models: [], attempt: null, last: null});
  empty();
  setConnected(false);
  news("The key has been removed.");
  $("key").focus();
}

function setConnected(connected) {
  $("key-form").hidden = connected;
  $("connected").hidden = !connected;
  $("fields").disabled = !connected;
  $("reload").hidden = !connected;
  if (!connected) $("nothing").textContent = "Enter a key to see its generations.";
}

function remember(key) {
  try {
    if (key) sessionStorage.setItem(KEPT, key);
    else sessionStorage.removeItem(KEPT);
  } catch { /* the browser forbids storage */ }
}

function remembered() {
  try {
    return sessionStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

// -------------------------------------------- the form for the selected model

function offerModels() {
  const groups = new Map();
  for (const model of session.models) {
    if (!groups.has(model.owned_by)) groups.set(model.owned_by, made("optgroup", {label: model.owned_by}));
    const option = new Option(model.available ? model.id : `${model.id} (no key)`, model.id, model.default, model.default);
    option.disabled = !model.available;
    groups.get(model.owned_by).append(option);
  }
  $("model").replaceChildren(...groups.values());
  offerParameters();
}

function parametersOfModel() {
  const all = session.models.find((model) => model.id === $("model").value)?.parameters ?? {};
  const fields = Object.entries(all).filter(([, field]) => !field.operations || field.operations.includes("generate"));
  return Object.fromEntries(fields);
}

/** Shows a control for each field of the model. Keeps the values that are still valid. */
function offerParameters() {
  const before = chosen();
  const {prompt, response_format: _, ...others} = parametersOfModel();
  $("prompt").maxLength = prompt?.max_characters ?? -1;
  $("parameters").replaceChildren(...Object.entries(others).map(([name, rule]) => control(name, rule, before[name])));
  offerFreeSize();
  countPrompt();
}

function control(name, rule, before) {
  const field = made("div", {className: "field"});
  const id = `field-${name}`;
  field.append(made("label", {htmlFor: id, textContent: name === "n" ? "Images" : capital(name.replaceAll("_", " "))}));
  if (rule.schema || rule.max_characters) {
    const value = before === undefined ? "" : rule.schema ? JSON.stringify(before) : before;
    const input = made("input", {id, name, value});
    if (rule.max_characters) input.maxLength = rule.max_characters;
    if (rule.schema) Object.assign(input, {placeholder: "JSON", title: "A JSON value"}).dataset.json = "";
    field.append(input);
    return field;
  }
  if (!rule.values) {
    const value = before ?? (name === "n" ? 1 : "");
    field.append(made("input", {id, type: "number", name, min: rule.min, max: rule.max, step: 1, value}));
    return field;
  }
  const select = made("select", {id, name});
  select.append(new Option("default", ""), ...rule.values.map((value) => new Option(value, value)));
  if (rule.values.includes(before)) select.value = before;
  field.append(select);
  if (!rule.free) return field;
  const {multiple_of: step, longest_edge: edge, widest_ratio: ratio} = rule.free;
  select.append(new Option("other …", "free"));
  if (before && !rule.values.includes(before)) select.value = "free";
  const free = made("input", {id: "free-size", placeholder: "1280x720", pattern: "[0-9]+x[0-9]+", required: true});
  free.value = select.value === "free" ? before : "";
  free.setAttribute("aria-label", `Width x height: multiples of ${step}, at most ${edge} long, at most ${ratio}:1`);
  free.title = `Multiples of ${step}, at most ${edge} long, at most ${ratio}:1`;
  field.append(free);
  return field;
}

function offerFreeSize() {
  const free = $("free-size");
  if (!free) return;
  free.hidden = free.disabled = $("field-size").value !== "free";
}

/** Returns the fields of the request that are set. */
function chosen() {
  const fields = {};
  for (const input of $("parameters").querySelectorAll("[name]")) {
    if (input.value === "") continue;
    fields[input.name] = input.type === "number" ? Number(input.value) : "json" in input.dataset ? parsed(input.value) : input.value;
  }
  if (fields.size === "free") fields.size = $("free-size").value;
  return fields;
}

/** Returns the value of a JSON text. The API explains what is wrong with any other text. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function request() {
  return {model: $("model").value, prompt: $("prompt").value, ...chosen(), response_format: "url"};
}

function countPrompt() {
  const most = $("prompt").maxLength;
  $("prompt-left").textContent = most > 0 ? `${$("prompt").value.length} of ${most} characters` : "";
}

async function generate() {
  if ($("generate").getAttribute("aria-disabled")) return;
  clearError();
  $("generate").setAttribute("aria-disabled", "true");
  news("Sent.");
  try {
    follow(await begin(JSON.stringify(request())));
  } catch (failure) {
    showError(failure);
  } finally {
    $("generate").removeAttribute("aria-disabled");
  }
}

// ---------------------------------------------------------------- the gallery

async function reload() {
  empty();
  await listMore();
}

async function listMore() {
  const after = session.last ? `&after=${encodeURIComponent(session.last)}` : "";
  const page = await call("GET", `images/generations?limit=12${after}`);
  for (const generation of page.data) {
    show(generation);
    if (!ENDED.has(generation.status)) follow(generation.id);
  }
  session.last = page.last_id ?? session.last;
  $("more").hidden = !page.has_more;
  showEmptyHint();
}

function empty() {
  cards.clear();
  session.last = null;
  $("gallery").replaceChildren();
  $("more").hidden = true;
}

function showEmptyHint() {
  $("nothing").textContent = cards.size ? "" : "No generations yet. Your images will appear here.";
}

/** Polls a generation until it has ended, the key has changed, or its card has been removed. */
async function follow(id) {
  const key = session.key;
  for (let pause = SOON, shown = cards.has(id); ;) {
    try {
      const generation = await call("GET", `images/generations/${id}`);
      if (session.key !== key || (shown && !cards.has(id))) return;
      const before = cards.get(id)?.generation;
      show(generation, {onTop: true});
      shown = true;
      reportChange(before, generation);
      if (ENDED.has(generation.status)) return;
      pause = Math.min(pause * 1.1, LATER);
    } catch (failure) {
      if (session.key !== key) return;
      if (!failure.again) return void (failure.status === 404 ? drop(id) : showError(failure));
      news(`${failure.message} Trying again.`);
      pause = LATER;
    }
    await sleep(pause);
  }
}

function reportChange(before, now) {
  if (before?.status === now.status && before.data.length === now.data.length) return;
  const seconds = now.completed_at ? ` after ${duration(now.completed_at - now.created_at)}` : "";
  const images = now.n === 1 ? "" : ` ${now.data.length} of ${now.n} images are ready.`;
  news(`${WORDS[now.status]}${seconds}.${images} ${now.error?.message ?? ""}`.trim());
}

function show(generation, {onTop = false} = {}) {
  let card = cards.get(generation.id);
  if (!card) {
    card = {element: $("card").content.firstElementChild.cloneNode(true), images: new Map()};
    cards.set(generation.id, card);
    card.element.querySelector(".cancel").addEventListener("click", () => cancel(generation.id));
    card.element.querySelector(".delete").addEventListener("click", () => remove(generation.id));
    $("gallery")[onTop ? "prepend" : "append"](card.element);
    showEmptyHint();
  }
  card.generation = generation;
  const ended = ENDED.has(generation.status);
  const {element} = card;
  element.dataset.status = generation.status;
  const made = new Date(generation.created_at * 1000);
  const title = `${generation.model}, ${made.toLocaleString([], {dateStyle: "medium", timeStyle: "medium"})}`;
  element.querySelector("h3").textContent = title;
  element.querySelector(".badge").textContent = WORDS[generation.status];
  for (const [name, label] of [["cancel", "Cancel"], ["delete", "Delete"]]) {
    element.querySelector(`.${name}`).setAttribute("aria-label", `${label}: ${title}`);
  }
  const cancelButton = element.querySelector(".cancel");
  if (ended && cancelButton === document.activeElement) element.querySelector(".delete").focus();
  cancelButton.hidden = ended;
  showImages(card, title);
  const failure = element.querySelector(".failure");
  failure.hidden = !generation.error;
  failure.textContent = generation.error ? messageOf(generation.error) : "";
  tick(card);
}

function showImages({element, images, generation}, title) {
  const list = element.querySelector(".images");
  for (const waiting of list.querySelectorAll(".waiting")) waiting.remove();
  generation.data.forEach((image, index) => {
    const key = image.id ?? index; // a description has texts without an id
    if (!images.has(key)) images.set(key, imageItem(image, `Image ${index + 1} of ${generation.n}, ${title}`));
    list.append(images.get(key));
  });
  if (ENDED.has(generation.status)) return;
  for (let missing = generation.n - generation.data.length; missing > 0; missing -= 1) {
    list.append(made("li", {className: "waiting", ariaHidden: "true"}));
  }
}

function imageItem(image, name) {
  if (image.text !== undefined) return made("li", {textContent: image.text});
  const item = $("image").content.firstElementChild.cloneNode(true);
  const picture = item.querySelector("img");
  picture.alt = image.revised_prompt ? `${name}: ${image.revised_prompt}` : name;
  // A signed URL expires. The durable link, at the address of this page, does not.
  picture.addEventListener("error", () => { picture.src = new URL(`v1/images/${image.id}`, BASE); }, {once: true});
  picture.src = image.url;
  if (/^https?:/.test(image.permalink)) item.querySelector("a").href = image.permalink;
  item.querySelector(".revised").textContent = image.revised_prompt ?? "";
  const button = item.querySelector(".copy-link");
  button.setAttribute("aria-label", `Copy the durable link of ${name}`);
  button.addEventListener("click", () => copy(image.permalink, "Link copied."));
  return item;
}

function tick({element, generation}) {
  const until = generation.completed_at ?? Date.now() / 1000;
  const {data, n, operation} = generation;
  const parts = [operation === "describe" ? `${data.length} texts` : `${data.length} of ${n}`, duration(until - generation.created_at)];
  if (generation.progress !== undefined && !ENDED.has(generation.status)) parts.push(`${generation.progress} %`);
  element.querySelector(".elapsed").textContent = parts.join(" · ");
}

async function cancel(id) {
  clearError();
  try {
    show(await call("POST", `images/generations/${id}/cancel`));
    news("Cancelled.");
  } catch (failure) {
    if (failure.status === 409) follow(id);
    else showError(failure);
  }
}

async function remove(id) {
  if (await asked($("confirm")) !== "delete") return;
  clearError();
  try {
    await call("DELETE", `images/generations/${id}`);
    drop(id);
    news("Deleted.");
    $("gallery-title").focus();
  } catch (failure) {
    showError(failure);
  }
}

function drop(id) {
  cards.get(id)?.element.remove();
  cards.delete(id);
  showEmptyHint();
}

// -------------------------------------------------------------------- copying

function asCurl() {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  return [
    `curl --location ${quoted(String(new URL("v1/images/generations", BASE)))}`,
    `--header "Authorization: Bearer $KEY"`,
    `--header 'Content-Type: application/json'`,
    `--data-raw ${quoted(JSON.stringify(request(), null, 2))}`,
  ].join(" \\\n");
}

// The arguments of OpenAI's client. It takes all other fields in `extra_body`.
const ARGUMENTS = ["model", "prompt", "n", "size", "quality", "style", "background", "moderation", "output_format",
  "output_compression", "response_format"];

function asPython() {
  const all = Object.entries(request());
  const known = all.filter(([name]) => ARGUMENTS.includes(name));
  const own = all.filter(([name]) => !ARGUMENTS.includes(name));
  if (own.length) known.push(["extra_body", Object.fromEntries(own)]);
  const fields = known.map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`);
  return `import os

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(String(new URL("v1", BASE)))}, api_key=os.environ["KEY"])
images = client.images.generate(
${fields.join("")})
for image in images.data:
    print(image.permalink)
`;
}

async function copy(text, done) {
  try {
    await navigator.clipboard.writeText(text);
    news(done);
  } catch { // no permission, or a page without https
    $("by-hand-text").value = text;
    $("by-hand").showModal();
    $("by-hand-text").select();
  }
}

// -------------------------------------------------------------------- helpers

function news(text) {
  $("news").textContent = text;
}

function messageOf({message, code}) {
  return code ? `${message} (${code})` : message;
}

function showError(failure) {
  const box = $("error");
  box.replaceChildren(made("p", {textContent: messageOf(failure)}));
  if (failure.requestId) box.append(made("p", {className: "hint", textContent: `Request ${failure.requestId}`}));
  box.hidden = false;
  news("");
  const field = {prompt: $("prompt"), model: $("model")}[failure.param] ?? $(`field-${failure.param}`);
  if (failure.status === 401 && !session.key) $("key").focus();
  else if (field) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  } else box.focus();
}

function clearError() {
  $("error").hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

function asked(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  // The close event comes one frame late. By then the dialog may be open again, for the next question.
  return new Promise((resolve) => {
    dialog.onclose = () => dialog.open || resolve(dialog.returnValue);
  });
}

function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

function made(name, properties) {
  return Object.assign(document.createElement(name), properties);
}

function on(id, event, act) {
  $(id).addEventListener(event, (happened) => {
    if (event === "submit") happened.preventDefault();
    Promise.resolve(act(happened)).catch(showError);
  });
}

on("key-form", "submit", () => connect($("key").value.trim()));
on("forget", "click", forget);
on("model", "change", offerParameters);
on("parameters", "change", offerFreeSize);
on("prompt", "input", countPrompt);
on("prompt", "keydown", (pressed) => {
  if (pressed.key === "Enter" && (pressed.ctrlKey || pressed.metaKey)) $("make").requestSubmit();
});
on("make", "submit", generate);
on("copy-curl", "click", () => copy(asCurl(), "Copied. The curl command reads the key from $KEY."));
on("copy-python", "click", () => copy(asPython(), "Copied. The Python code reads the key from $KEY."));
on("reload", "click", reload);
on("more", "click", listMore);
setInterval(() => {
  for (const card of cards.values()) if (!ENDED.has(card.generation.status)) tick(card);
}, 1000);

const kept = remembered();
if (kept) {
  $("keep-key").checked = true;
  connect(kept);
}
