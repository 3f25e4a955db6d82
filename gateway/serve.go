package gateway

import "tidegate/degrade"

// generate is the path of a generation, from a request to its answer.
func (g *Gateway) generate(c *call) error {
	c.stand(degrade.Full, "")
	if err := g.parse(c); err != nil { // who, which model, exact prompt tokens
		return err
	}
	permit, err := g.Admission.Admit(c.r.Context(), c.demand()) // limits and quotas; names the backend and holds a place on it
	if err != nil {
		return err
	}
	defer g.settle(c, permit) // once, whatever happens, panics included
	c.permit = permit         // from here on the ledger has it
	g.takeOff(c)              // also if this process is killed
	c.stand(permit.Level, permit.Reason)
	c.tell(permit.Headers)
	return g.forward(c, permit) // retries before the first byte; the tap counts tokens
}
