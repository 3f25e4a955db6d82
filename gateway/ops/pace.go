package ops

import (
	"tidegate/gateway/backend"
)

// By which factor a backend must be slower than its peers before anybody is told: load
// and length of prompts alone make less.
const (
	slowSpeed = 2
	slowTTFT  = 3
	leastTTFT = 1.0 // seconds up to which a first token is quick enough whatever its peers do
)

// pacing holds the speeds of a model's backends, in their order; 0 where one is not known.
type pacing struct{ speed, quickness []float64 }

// add appends one backend. Those out of rotation are nobody's peers.
func (p *pacing) add(usable bool, speed, ttft float64) {
	quickness := 0.0
	if !usable {
		speed = 0
	} else if ttft > 0 {
		quickness = 1 / max(ttft, leastTTFT/slowTTFT)
	}
	p.speed, p.quickness = append(p.speed, speed), append(p.quickness, quickness)
}

// slow reports for each backend whether it is slower than its peers: in its tokens a
// second, and to its first token.
func (p *pacing) slow() (speed, ttft []bool) {
	return backend.Slower(p.speed, slowSpeed), backend.Slower(p.quickness, slowTTFT)
}
