// Package nvml says what the GPUs of the fleet are doing: their memory and
// temperature as readings with an age, never as a bare number. It is the last
// room of the house; it calls nobody, and whatever a driver does stays in here.
package nvml
