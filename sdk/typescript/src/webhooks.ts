// Destinations for the events of sandboxes, and the check of what arrives there.

import { hmacSha256 } from "#platform";
import { type ClientOpts } from "./config.js";
import { WebhookVerificationError } from "./errors.js";
import { Client, path } from "./http.js";
import { parsed } from "./sse.js";

export type SandboxStopReason = "user_requested" | "expired" | "crash";

interface EventBase {
  id: string;
  /** ISO 8601. */
  ts: string;
  orgId: string;
  sandboxId: string;
}

/** Told apart by `type`. */
export type SandboxLifecycleEvent = EventBase &
  (
    | { type: "sandbox.created"; data: { template?: string } }
    | { type: "sandbox.ready"; data: Record<string, never> }
    | { type: "sandbox.hibernated"; data: Record<string, never> }
    | { type: "sandbox.resumed"; data: Record<string, never> }
    | { type: "sandbox.stopped"; data: { reason: SandboxStopReason } }
    | { type: "sandbox.migrated"; data: Record<string, never> }
    | { type: "sandbox.checkpoint.created"; data: { checkpointId: string } }
    | { type: "sandbox.forked"; data: { parentId: string } }
    | { type: "sandbox.scaled"; data: { cpuCount: number; memoryMB: number } }
    | { type: "sandbox.preview_url.changed"; data: { port: number; url: string | null } }
    | { type: "sandbox.test"; data: Record<string, unknown> }
  );

export type SandboxWebhookEventType = SandboxLifecycleEvent["type"];

export interface WebhookDelivery<E = SandboxLifecycleEvent> {
  type: string;
  sandboxId?: string;
  eventId: string;
  /** The message's id. */
  deliveryId: string;
  /** The same for every try of one message. */
  dedupeId: string;
  event: E;
}

export interface WebhookDestination {
  /** `whk_…` */
  id: string;
  name: string | null;
  url: string;
  /** Exact types or `prefix.*`; empty: all. */
  eventTypes: string[];
  /** null: every sandbox of the organization. */
  sandboxId: string | null;
  enabled: boolean;
  hasSecret: boolean;
  /** ISO 8601. */
  createdAt: string;
  /** ISO 8601. */
  updatedAt: string;
}

export interface CreateWebhookParams {
  /** https only. */
  url: string;
  name?: string;
  /** `whsec_…`; made by the server when left out. */
  secret?: string;
  eventTypes?: string[];
  sandboxId?: string;
  enabled?: boolean;
  /** Further headers of each delivery. */
  metadata?: Record<string, string>;
  /** A repeat with the same key gives the first one's result. Default: made anew for each call. */
  idempotencyKey?: string;
}

export interface CreateWebhookResult extends WebhookDestination {
  secret?: string;
}

export interface UpdateWebhookParams {
  url?: string;
  /** null or `[]`: all. */
  eventTypes?: string[] | null;
  enabled?: boolean;
  rotateSecret?: boolean;
  name?: string;
}

export type WebhookDeliveryStatus = "success" | "pending" | "failed";

export interface WebhookDeliveryRecord {
  id: string;
  attemptId?: string;
  status: WebhookDeliveryStatus;
  responseStatusCode?: number;
  timestamp?: string;
}

export interface WebhookMessage {
  id: string;
  eventType?: string;
  eventId?: string;
  payload?: unknown;
  timestamp?: string;
}

export interface WebhookTestResult {
  ok: boolean;
  eventType?: string;
  messageId?: string;
}

export type WebhooksOptions = ClientOpts;

/** Destinations of the organization. */
export class Webhooks {
  readonly deliveries: WebhookDeliveries;
  readonly #client: Client;

  constructor(opts: WebhooksOptions = {}) {
    this.#client = new Client(opts);
    this.deliveries = new WebhookDeliveries(this.#client);
  }

  create({ idempotencyKey, ...json }: CreateWebhookParams): Promise<CreateWebhookResult> {
    return this.#client.json({
      action: "create webhook",
      method: "POST",
      path: "/webhooks",
      json,
      repeat: "keyed",
      idempotencyKey,
      secrets: json.secret === undefined ? [] : [json.secret],
    });
  }

  async list(): Promise<WebhookDestination[]> {
    const call = { action: "list webhooks", method: "GET", path: "/webhooks" } as const;
    return (await this.#client.json<{ data: WebhookDestination[] }>(call)).data;
  }

  get(id: string): Promise<WebhookDestination> {
    const at = path`/webhooks/${id}`;
    return this.#client.json({ action: "get webhook", method: "GET", path: at });
  }

  /** The signing secret. */
  async getSecret(id: string): Promise<string> {
    const at = path`/webhooks/${id}/secret`;
    const call = { action: "get webhook secret", method: "GET", path: at } as const;
    return (await this.#client.json<{ secret: string }>(call)).secret;
  }

  update(id: string, json: UpdateWebhookParams): Promise<CreateWebhookResult> {
    const at = path`/webhooks/${id}`;
    return this.#client.json({ action: "update webhook", method: "PATCH", path: at, json });
  }

  delete(id: string): Promise<void> {
    const at = path`/webhooks/${id}`;
    return this.#client.done({ action: "delete webhook", method: "DELETE", path: at });
  }

  /** Sends an event of a type that the destination takes. */
  test(id: string): Promise<WebhookTestResult> {
    const at = path`/webhooks/${id}/test`;
    return this.#client.json({ action: "test webhook", method: "POST", path: at });
  }
}

/** What was sent to a destination. `webhooks.deliveries`. */
export class WebhookDeliveries {
  readonly #client: Client;

  /** @internal */
  constructor(client: Client) {
    this.#client = client;
  }

  async list(destinationId: string): Promise<WebhookDeliveryRecord[]> {
    const at = path`/webhooks/${destinationId}/deliveries`;
    const call = { action: "list deliveries", method: "GET", path: at } as const;
    return (await this.#client.json<{ data: WebhookDeliveryRecord[] }>(call)).data;
  }

  get(destinationId: string, deliveryId: string): Promise<WebhookMessage> {
    const at = path`/webhooks/${destinationId}/deliveries/${deliveryId}`;
    return this.#client.json({ action: "get delivery", method: "GET", path: at });
  }

  /** Sends it again under the same id. */
  redeliver(destinationId: string, deliveryId: string): Promise<{ ok: boolean }> {
    const at = path`/webhooks/${destinationId}/deliveries/${deliveryId}/redeliver`;
    return this.#client.json({ action: "redeliver", method: "POST", path: at });
  }
}

export interface VerifyWebhookOptions {
  /** Default 300. */
  toleranceSeconds?: number;
  /** In place of the clock: Unix seconds. */
  nowSeconds?: number;
}

type HeaderBag = Record<string, string | string[] | undefined>;

const TOLERANCE_SEC_DEFAULT = 300;

/**
 * Checks that a delivery is the server's and is fresh; gives its content. Hand over the body as it
 * came, not parsed. Throws {@link WebhookVerificationError}.
 */
export async function verifyWebhook<E = SandboxLifecycleEvent>(
  rawBody: string,
  headers: HeaderBag | Headers,
  secret: string,
  opts: VerifyWebhookOptions = {},
): Promise<WebhookDelivery<E>> {
  const id = header(headers, "id");
  const timestamp = header(headers, "timestamp");
  const signatures = header(headers, "signature");
  const now = opts.nowSeconds ?? Date.now() / 1000;
  const age = Math.abs(now - (/^\d+$/.test(timestamp) ? Number(timestamp) : NaN));
  if (!(age <= (opts.toleranceSeconds ?? TOLERANCE_SEC_DEFAULT))) {
    throw new WebhookVerificationError("the webhook's timestamp is too old or too new");
  }
  const data = new TextEncoder().encode(`${id}.${timestamp}.${rawBody}`);
  const expected = `v1,${toBase64(await hmacSha256(keyOf(secret), data))}`;
  if (!signatures.split(" ").some((signature) => same(signature, expected))) {
    throw new WebhookVerificationError("the webhook's signature does not fit");
  }
  const body = parsed(rawBody);
  if (typeof body !== "object" || body === null) {
    throw new WebhookVerificationError("the webhook's body is not a JSON object");
  }
  return { ...body, deliveryId: id, dedupeId: id } as WebhookDelivery<E>;
}

function header(headers: HeaderBag | Headers, name: string): string {
  const bag = headers instanceof Headers ? Object.fromEntries(headers) : headers;
  for (const wanted of [`svix-${name}`, `webhook-${name}`]) {
    const found = Object.entries(bag).find(([key]) => key.toLowerCase() === wanted)?.[1];
    const value = Array.isArray(found) ? found[0] : found;
    if (value !== undefined && value !== "") return value;
  }
  throw new WebhookVerificationError(`the webhook has no ${name}`);
}

/** The text after `whsec_` in base64, if it is that; else the whole secret's bytes. */
function keyOf(secret: string): Uint8Array {
  const text = secret.replace(/^whsec_/, "");
  try {
    const binary = atob(text);
    if (binary !== "" && btoa(binary) === text) {
      return Uint8Array.from(binary, (char) => char.charCodeAt(0));
    }
  } catch {
    // Not base64.
  }
  return new TextEncoder().encode(secret);
}

function toBase64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes));
}

/** Takes as long wherever the texts differ. */
function same(one: string, other: string): boolean {
  let differs = one.length ^ other.length;
  for (let i = 0; i < other.length; i += 1) differs |= one.charCodeAt(i) ^ other.charCodeAt(i);
  return differs === 0;
}
