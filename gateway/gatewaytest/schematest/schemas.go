// Package schematest checks answers against OpenAI's own schemas.
//
// It stands apart from gatewaytest so that the simulator's binary does not
// carry a JSON schema validator. vLLM's answers are not quite OpenAI's; what
// differs is named in tolerate, and nothing else is let through.
package schematest

import (
	"bytes"
	_ "embed"
	"fmt"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

//go:embed testdata/openai/schemas.json
var source []byte

// Schemas checks JSON against the definitions of OpenAI's API. It is not safe
// for concurrent use.
type Schemas struct {
	compiler *jsonschema.Compiler
	compiled map[string]*jsonschema.Schema
}

// NewSchemas reads the embedded definitions.
func NewSchemas() (*Schemas, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(source))
	if err != nil {
		return nil, fmt.Errorf("schematest: %w", err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("openai.json", doc); err != nil {
		return nil, fmt.Errorf("schematest: %w", err)
	}
	return &Schemas{compiler: c, compiled: map[string]*jsonschema.Schema{}}, nil
}

// Check validates a body against a definition such as
// CreateChatCompletionStreamResponse, letting vLLM's known differences pass.
func (s *Schemas) Check(def string, body []byte) error { return s.check(def, body, true) }

// Strict validates without any exception: for what a gateway says by itself.
func (s *Schemas) Strict(def string, body []byte) error { return s.check(def, body, false) }

func (s *Schemas) check(def string, body []byte, lenient bool) error {
	schema := s.compiled[def]
	if schema == nil {
		var err error
		if schema, err = s.compiler.Compile("openai.json#/$defs/" + def); err != nil {
			return fmt.Errorf("schematest: %w", err)
		}
		s.compiled[def] = schema
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: no JSON: %w", def, err)
	}
	if lenient {
		tolerate(v)
	}
	if err := schema.Validate(v); err != nil {
		return fmt.Errorf("%s: %w in %s", def, err, body)
	}
	return nil
}

// tolerate removes where vLLM differs:
//
//   - null where OpenAI leaves the key out: function_call, annotations, audio,
//     system_fingerprint, prompt_tokens_details, completion_tokens_details,
//     reasoning, reasoning_content
//   - logprobs without "refusal"
//   - an integer error code
//   - finish_reason null in the chunks of a text completion
func tolerate(v any) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			tolerate(item)
		}
	case map[string]any:
		for _, key := range []string{"function_call", "annotations", "audio", "system_fingerprint",
			"prompt_tokens_details", "completion_tokens_details", "reasoning", "reasoning_content"} {
			if value, ok := v[key]; ok && value == nil {
				delete(v, key)
			}
		}
		if logprobs, ok := v["logprobs"].(map[string]any); ok && logprobs["content"] != nil && logprobs["refusal"] == nil {
			logprobs["refusal"] = nil
		}
		if e, ok := v["error"].(map[string]any); ok {
			if _, isText := e["code"].(string); !isText {
				e["code"] = nil
			}
		}
		if _, isText := v["text"]; isText && v["finish_reason"] == nil {
			v["finish_reason"] = "stop"
		}
		for _, item := range v {
			tolerate(item)
		}
	}
}
