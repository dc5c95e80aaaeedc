"""Write a folder that Ollama makes a model of: a Modelfile beside the GGUF.

    Modelfile     FROM ./model.gguf, ADAPTER ./lora.gguf, TEMPLATE, PARAMETER stop
    model.gguf    of the model, or of the base of an adapter

Ollama does not read the Jinja template of a GGUF: its own templates are Go's. It has no guard
either, so text that spells `<|user|>` is read as that token. Ollama was not run here: what is
checked is the GGUF, in llama.cpp, on which it is built.

Source: https://github.com/ollama/ollama, docs/modelfile.md and docs/template.md.
"""

MODELFILE = "Modelfile"
# A turn, and the role of the next one unless the client began the answer itself.
_ROLES = """\
{{- range $index, $message := .Messages }}
{{- if eq .Role "tool" }}<|observation|>
{{ else }}<|{{ .Role }}|>{{ range .ToolCalls }}{{ .Function.Name }}{{ end }}
{{ end }}
{{- range .ToolCalls }} ```python
tool_call({{ range $name, $value := .Function.Arguments }}{{ $name }}={{ $value }}{{ end }})
```{{ end }}
{{- if .Content }} {{ .Content }}{{ end }}
{{- if and (eq (len (slice $.Messages $index)) 1) (ne .Role "assistant") }}<|assistant|>{{ end }}
{{- end }}"""
