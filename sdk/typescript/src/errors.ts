// What can go wrong, as classes. No error holds an API key, a secret value or a request's headers.

/** Everything this library throws by itself is one of these. */
export class OpenComputerError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** What the server said about a request that failed. */
export interface ApiErrorInfo {
  /** What was tried, for example `create project`. */
  action: string;
  status: number;
  /** The reply's text, with keys and secret values taken out. */
  text: string;
  /** The reply as JSON, if it was an object. */
  body: Readonly<Record<string, unknown>>;
  /** `X-Request-Id`: the server's log names the request by it. */
  requestId: string | undefined;
  /** Seconds, when the server said how long to wait. */
  retryAfter: number | undefined;
  /** The message ends with the status, without the reply's text. */
  short: boolean;
}

/** The server answered with a status that is no success. */
export class ApiError extends OpenComputerError {
  readonly status: number;
  /** The server's own words, from the reply's `error`. */
  readonly reason: string;
  /** Stable word for a case that programs tell apart, for example `scaling_locked`. */
  readonly code: string | undefined;
  readonly requestId: string | undefined;
  readonly retryAfter: number | undefined;
  /** The server did nothing and says that the same call may succeed soon. */
  readonly retryable: boolean;
  /** All fields of the reply. */
  readonly body: Readonly<Record<string, unknown>>;

  constructor(info: ApiErrorInfo) {
    const tail = info.short || info.text === "" ? "" : ` ${info.text}`;
    super(`Failed to ${info.action}: ${info.status}${tail}`);
    const { error, code } = info.body;
    this.status = info.status;
    this.reason = typeof error === "string" ? error : info.text;
    this.code = typeof code === "string" ? code : undefined;
    this.requestId = info.requestId;
    this.retryAfter = info.retryAfter;
    this.retryable = info.body["retryable"] === true || info.body["waking"] === true;
    this.body = info.body;
  }
}

/** 400: the request, or the state its object is in. */
export class BadRequestError extends ApiError {}
/** 401: no key, or one that is not valid. */
export class AuthenticationError extends ApiError {}
/** 402: the plan does not allow it. */
export class PlanLimitError extends ApiError {}
/** 403. */
export class PermissionDeniedError extends ApiError {}
/** 403 `scaling_locked`: unlock with `sandbox.setScalingLock(false)`. */
export class ScalingLockedError extends PermissionDeniedError {
  override readonly code = "scaling_locked";
}
/** 403 `sandbox_family_scale_disabled`: this kind of sandbox cannot be resized. */
export class SandboxFamilyLimitError extends PermissionDeniedError {
  override readonly code = "sandbox_family_scale_disabled";
}
/** 404: no such object, or one of another organization. */
export class NotFoundError extends ApiError {}
/** 409: a name that is taken, or a state that does not allow it. */
export class ConflictError extends ApiError {}
/** 410: the sandbox has been killed or has failed. */
export class GoneError extends ApiError {}
/** 429: too many sandboxes at once. */
export class RateLimitError extends ApiError {
  /** Running now, when the server says so. */
  get active(): number | undefined {
    return numberIn(this.body, "active");
  }
  /** Allowed at once, when the server says so. */
  get limit(): number | undefined {
    return numberIn(this.body, "limit");
  }
}
/** 5xx. */
export class ServerError extends ApiError {}
/** 503: no room, waking, or not there at the moment. */
export class UnavailableError extends ServerError {}

/** No reply came: the server could not be reached, or the connection broke. */
export class ConnectionError extends OpenComputerError {}
/** The call took longer than it may. What was asked for may have been done all the same. */
export class TimeoutError extends OpenComputerError {}
/** An image or a snapshot could not be built. */
export class BuildError extends OpenComputerError {}

/** The wait for a command ended before the command; it goes on inside the sandbox. */
export class ExecTimeoutError extends TimeoutError {
  constructor(
    message: string,
    /** Names the command that goes on. */
    readonly execId: string,
  ) {
    super(message);
  }
}

/** A shell runs one command at a time. */
export class ShellBusyError extends OpenComputerError {
  constructor() {
    super("shell is already running a command; shell.run is foreground-only");
  }
}

/** The shell has ended, also by a command of its own such as `exit`. */
export class ShellClosedError extends OpenComputerError {
  constructor(reason?: string) {
    super(reason === undefined ? "shell is closed" : `shell is closed: ${reason}`);
  }
}

/** A webhook's signature is missing, wrong or too old. */
export class WebhookVerificationError extends OpenComputerError {}

const BY_STATUS: Readonly<Record<number, new (info: ApiErrorInfo) => ApiError>> = {
  400: BadRequestError,
  401: AuthenticationError,
  402: PlanLimitError,
  403: PermissionDeniedError,
  404: NotFoundError,
  409: ConflictError,
  410: GoneError,
  429: RateLimitError,
  503: UnavailableError,
};

/** The class that fits a reply. */
export function apiError(info: ApiErrorInfo): ApiError {
  if (info.status === 403 && info.body["code"] === "scaling_locked") {
    return new ScalingLockedError(info);
  }
  if (info.status === 403 && info.body["code"] === "sandbox_family_scale_disabled") {
    return new SandboxFamilyLimitError(info);
  }
  const Fitting = BY_STATUS[info.status] ?? (info.status >= 500 ? ServerError : ApiError);
  return new Fitting(info);
}

function numberIn(body: Readonly<Record<string, unknown>>, field: string): number | undefined {
  const value = body[field];
  return typeof value === "number" ? value : undefined;
}
