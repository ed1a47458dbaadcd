#!/usr/bin/env bash
# Paint one picture by ComfyUI's HTTP interface, with curl and jq: ./paint.sh "a robot on a gray background" 7 out.png
# COMFYUI_URL is the server (http://127.0.0.1:8188).
set -euo pipefail
server=${COMFYUI_URL:-http://127.0.0.1:8188}
prompt="$(dirname "$0")/../workflows/api/Stable Cascade - first picture.json"

# Without a client_id, older servers tell nothing of a picture that they have painted before.
id=$(jq --arg text "$1" --argjson seed "$2" '{client_id: "paint", prompt: (map_values(
        if ._meta.title == "Prompt" then .inputs.text = $text else . end
        | if .inputs | has("seed") then .inputs.seed = $seed else . end))}' "$prompt" |
    curl -fsS -H 'Content-Type: application/json' --data-binary @- "$server/prompt" | jq -r .prompt_id)

until entry=$(curl -fsS "$server/history/$id" | jq -e --arg id "$id" '.[$id]'); do
    sleep 0.2
done
jq -e '.status.status_str == "success"' <<<"$entry" >/dev/null || {
    jq -c '.status.messages[-1]' <<<"$entry" >&2
    exit 1
}
file=$(jq -r '[.outputs[].images // [] | .[]][0] | "filename=\(.filename|@uri)&subfolder=\(.subfolder|@uri)&type=\(.type)"' <<<"$entry")
curl -fsS -o "$3" "$server/view?$file"
