-- Writes the error responses of HAProxy in the formats of the apps.
--
-- haproxy.sh loads this into HAProxy and names `lua.moyin_error` as the body of every error
-- response. HAProxy responds itself while no route is known (Ray starts or has lost its control
-- store, no app is deployed), while no replica accepts connections, and when a replica dies during a
-- request. tests/integration/test_haproxy_errors.py compares every format with the app's own.

-- One entry per status: title, code, message, then the error types of OpenAI's and Anthropic's formats.
local ERRORS = {
    [400] = {
        "Bad Request", "bad_request",
        "the request is not valid HTTP: check its request line, headers and length",
        "invalid_request_error", "invalid_request_error",
    },
    [408] = {
        "Request Timeout", "body_too_slow",
        "the request did not arrive in time",
        "invalid_request_error", "invalid_request_error",
    },
    [500] = {
        "Internal Server Error", "internal_error",
        "an internal error occurred",
        "server_error", "api_error",
    },
    [502] = {
        "Bad Gateway", "worker_lost",
        "the replica ended before it answered; the request may have been carried out",
        "server_error", "api_error",
    },
    [503] = {
        "Service Unavailable", "service_unavailable",
        "the service is starting or restarting; try again",
        "service_unavailable_error", "overloaded_error",
    },
    [504] = {
        "Gateway Timeout", "backend_timeout",
        "the replica did not answer in time",
        "service_unavailable_error", "timeout_error",
    },
}

local function set(...)
    local members = {}
    for _, member in ipairs({...}) do members[member] = true end
    return members
end

-- These equal the paths in moyin/comfy_api/protocol/paths.py and deployments/errors.py.
local COMFYUI = set(
    "embeddings", "experiment", "extensions", "features", "free", "global_subgraphs", "history",
    "i18n", "internal", "interrupt", "jobs", "models", "object_info", "prompt", "queue",
    "settings", "system_stats", "upload", "userdata", "users", "view", "view_metadata",
    "workflow_templates", "ws"
)
local OLLAMA = set(
    "/api/chat", "/api/generate", "/api/tags", "/api/show", "/api/ps", "/api/embed", "/api/version"
)
local COMFYUI_V2 = {"/api/v2/jobs", "/api/v2/assets"}
local MODELS_OWN = {
    "/v1/requests", "/v1/route", "/v1/feedback", "/v1/quality", "/v1/healthz", "/v1/readyz"
}
-- A longer path is truncated in `instance`, because the body must fit into HAProxy's buffer.
local MAX_PATH = 1024

local function begins(text, start)
    return text:sub(1, #start) == start
end

local function begins_with_any(text, starts)
    for _, start in ipairs(starts) do
        if begins(text, start) then return true end
    end
    return false
end

-- Returns the path of ComfyUI's API for a path that its page at /comfy/ requests.
local function inside(path)
    if not begins(path, "/comfy/") then return path end
    local rest = path:sub(#"/comfy/" + 1)
    if begins(rest, "extensions/core/") then return path end
    if rest == "ws" or begins_with_any(rest, {"api/", "internal/", "extensions/"}) then
        return "/" .. rest
    end
    return path
end

local function is_comfyui(path)
    local served = inside(path)
    local below_api = begins(served, "/api/")
    local bare = served
    if begins(bare, "/api") then bare = bare:sub(#"/api" + 1) end
    local first = bare:match("^/*([^/]*)")
    return COMFYUI[first] and (below_api or first ~= "jobs")
end

local function shape_of(path)
    if path == "/v1" or begins(path, "/v1/") then
        if begins(path, "/v1/messages") then return "anthropic" end
        if begins(path, "/v1/ollama") then return "ollama" end
        if begins_with_any(path, MODELS_OWN) then return "problem" end
        return "openai"
    end
    if path == "/accounts" or begins(path, "/accounts/") then return "problem" end
    if OLLAMA[path] then return "ollama" end
    if begins_with_any(path, COMFYUI_V2) then return "comfyui_v2" end
    if is_comfyui(path) then return "comfyui" end
    return "problem"
end

local ESCAPES = {['"'] = '\\"', ["\\"] = "\\\\"}

local function escape(character)
    return ESCAPES[character] or string.format("\\u%04x", character:byte())
end

local function quoted(text)
    -- Bytes that are not UTF-8 would make the whole body invalid.
    local odd = utf8.len(text) and '[%c"\\\127]' or '[%c"\\\127-\255]'
    return '"' .. text:gsub(odd, escape) .. '"'
end

local function decoded(path)
    return (path:gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

local BODIES = {}

function BODIES.problem(status, error, id, path)
    return string.format(
        '{"type":"about:blank","title":%s,"status":%d,"detail":%s,"instance":%s,"code":%s,"request_id":%s}',
        quoted(error[1]), status, quoted(error[3]), quoted(path:sub(1, MAX_PATH)),
        quoted(error[2]), quoted(id)
    )
end

function BODIES.openai(status, error, id)
    return string.format(
        '{"error":{"message":%s,"type":%s,"param":null,"code":%s},"request_id":%s}',
        quoted(error[3]), quoted(error[4]), quoted(error[2]), quoted(id)
    )
end

function BODIES.anthropic(status, error, id)
    return string.format(
        '{"type":"error","error":{"type":%s,"message":%s,"code":%s},"request_id":%s}',
        quoted(error[5]), quoted(error[3]), quoted(error[2]), quoted(id)
    )
end

function BODIES.ollama(status, error, id)
    return string.format(
        '{"error":%s,"code":%s,"request_id":%s}', quoted(error[3]), quoted(error[2]), quoted(id)
    )
end

function BODIES.comfyui(status, error, id)
    return string.format(
        '{"error":{"type":%s,"message":%s,"details":"","extra_info":{}},"node_errors":{},"code":%s,"request_id":%s}',
        quoted(error[2]), quoted(error[3]), quoted(error[2]), quoted(id)
    )
end

function BODIES.comfyui_v2(status, error, id)
    return string.format(
        '{"error":{"code":%s,"message":%s,"details":{"code":%s,"request_id":%s}}}',
        quoted(error[2]), quoted(error[3]), quoted(error[2]), quoted(id)
    )
end

-- For gRPC the error is in headers, which haproxy.sh sets.
function BODIES.grpc()
    return ""
end

-- Returns the client's request id if it is valid by `REQUEST_ID_PATTERN` of the gatekeeper.
local function request_id(txn)
    local given = txn:get_var("txn.moyin_id")
    if given and #given <= 128 and given:match("^[%w._:-]+$") then return given end
    return (txn.f:uuid():gsub("-", ""))
end

core.register_fetches("moyin_error", function(txn, status)
    status = tonumber(status)
    local path = decoded(txn:get_var("txn.moyin_path") or "")
    local shape = txn:get_var("txn.moyin_shape") or shape_of(path)
    local id = request_id(txn)
    -- haproxy.sh turns these into headers.
    txn:set_var("txn.moyin_id", id)
    txn:set_var("txn.moyin_shape", shape)
    txn:set_var("txn.moyin_code", ERRORS[status][2])
    txn:set_var("txn.moyin_message", ERRORS[status][3])
    return BODIES[shape](status, ERRORS[status], id, path)
end)
