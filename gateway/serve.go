package gateway

import (
	"time"

	"tidegate/degrade"
)

// generate is the path of a generation, from a request to its answer.
func (g *Gateway) generate(c *call) error {
	c.stand(degrade.Full, "")
	if err := g.parse(c); err != nil { // who, which model, exact prompt tokens
		return err
	}
	defer c.follow()() // ends the request where its key is revoked meanwhile
	g.begins(c)
	asked := time.Now()
	permit, err := g.Admission.Admit(c.r.Context(), g.demand(c)) // level, limits and quotas, queue; names the backend and holds a place on it
	c.tracing.admitted(c, asked, permit, err)
	if err != nil {
		return err
	}
	defer g.settle(c, permit) // once, whatever happens, panics included
	c.runs()
	if err := g.descend(c, permit); err != nil { // what the level makes of the request
		return err
	}
	c.stand(permit.Level, permit.Reason)
	g.takeOff(c) // the ledger has it also if this process is killed
	c.tell(permit.Headers)
	if permit.Level == degrade.Canned {
		return g.canned(c)
	}
	return g.forward(c, permit) // retries before the first byte; the tap counts tokens
}
