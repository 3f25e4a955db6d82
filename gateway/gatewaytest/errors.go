package gatewaytest

import (
	"errors"
	"net/http"
	"strconv"
)

// apiError is an error in vLLM's shape: code is the integer status, not
// OpenAI's string.
type apiError struct {
	status  int
	message string
	kind    string
	param   string
}

func (e *apiError) Error() string { return e.message }

// body returns the whole JSON object, also used for events inside a stream.
func (e *apiError) body() []byte {
	b := append([]byte(nil), `{"error":{"message":`...)
	b = appendString(b, e.message)
	b = append(b, `,"type":`...)
	b = appendString(b, e.kind)
	b = append(b, `,"param":`...)
	if e.param == "" {
		b = append(b, "null"...)
	} else {
		b = appendString(b, e.param)
	}
	b = append(b, `,"code":`...)
	b = strconv.AppendInt(b, int64(e.status), 10)
	return append(b, "}}"...)
}

// malformed returns the error of pydantic, whose type is the status phrase.
func malformed(param, message string) error {
	return &apiError{http.StatusBadRequest, message, "Bad Request", param}
}

// invalid returns the error that vLLM raises after pydantic.
func invalid(param, message string) error {
	return &apiError{http.StatusBadRequest, message, "BadRequestError", param}
}

func noModel(model string) error {
	return &apiError{http.StatusNotFound, "The model `" + model + "` does not exist.", "NotFoundError", "model"}
}

func engineDead() error {
	return &apiError{http.StatusInternalServerError,
		"EngineCore encountered an issue. See stack trace (above) for the root cause.", "InternalServerError", ""}
}

func queueFull() error {
	return &apiError{http.StatusServiceUnavailable,
		"The server is overloaded: too many requests are queued. Please retry later.", "ServiceUnavailableError", ""}
}

// asAPIError turns any error into one that can be written.
func asAPIError(err error) *apiError {
	var e *apiError
	if errors.As(err, &e) {
		return e
	}
	return &apiError{http.StatusInternalServerError, err.Error(), "InternalServerError", ""}
}

func writeError(w http.ResponseWriter, err error) int {
	e := asAPIError(err)
	writeJSON(w, e.status, e.body())
	return e.status
}

func writeJSON(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	// A failed write means that the client has left; nobody is there to be told.
	_, _ = w.Write(body)
}
