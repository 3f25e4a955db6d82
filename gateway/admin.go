package gateway

import (
	"fmt"

	"tidegate/gateway/admin"
)

// administration returns the handler of a route that an administrator's key opens.
func (g *Gateway) administration(handle admin.Handler) handler {
	answer := g.adminAnswer(handle)
	return func(c *call) (err error) {
		c.writer.w.Header().Set("Cache-Control", "no-store")
		if c.caller, err = c.settings.accounts.IdentifyAdministrator(c.r.Context(), authorization(c.r.Header), c.clientAddr()); err != nil {
			return err
		}
		c.showExpiry()
		return answer(c)
	}
}

// adminAnswer sends what a handler of package admin answers to a known caller.
func (g *Gateway) adminAnswer(handle admin.Handler) handler {
	return func(c *call) error {
		answer, err := handle(&admin.Request{
			Request: c.r, Accounts: c.settings.accounts, Caller: c.caller, Zone: c.settings.Zone, Prices: c.settings.Prices, ReadBody: c.readBody,
		})
		if err != nil {
			return err
		}
		file, ok := answer.(admin.File)
		if !ok {
			return c.writer.sendJSON(answer)
		}
		c.writer.header("Content-Type", file.ContentType)
		c.writer.header("Content-Disposition", fmt.Sprintf("attachment; filename=%q", file.Name))
		c.writer.sendHead()
		_, _ = c.writer.w.Write(file.Body) // a caller that has left will not miss it
		return nil
	}
}
