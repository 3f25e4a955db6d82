package gateway

import "tidegate/admission"

// generate is the path of a generation, from a request to its answer.
func (g *Gateway) generate(c *call) error {
	if err := g.parse(c); err != nil { // who, which model, exact prompt tokens
		return err
	}
	permit, err := g.Admission.Admit(c.r.Context(), admission.Demand{Pool: c.model.Pool}) // names the backend and holds a place on it
	if err != nil {
		return err
	}
	defer permit.Settle()                                             // once, whatever happens, panics included
	c.admitted, c.level, c.reason = true, permit.Level, permit.Reason // from here on the ledger has it
	return g.forward(c, permit)                                       // retries before the first byte; the tap counts tokens
}
