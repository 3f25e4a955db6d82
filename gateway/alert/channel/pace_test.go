package channel

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace holds that no vendor gets more than it takes in any minute, nor in any second.
func TestPace(t *testing.T) {
	for kind, most := range map[string]struct{ minute, second int }{
		DingTalk: {20, 20}, WeCom: {20, 20}, Feishu: {100, 5}, Slack: {65, 5}, Webhook: {1000, 1000}, Email: {1000, 1000},
	} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				turns := pacer{interval: paceInterval(kind)}
				var sent []time.Time
				for i := range 150 {
					if i == 100 {
						time.Sleep(time.Hour) // what was saved up is a burst, no more
					}
					if !turns.wait(t.Context()) {
						t.Fatal("no turn")
					}
					sent = append(sent, time.Now())
				}
				for i, first := range sent {
					var minute, second int
					for _, at := range sent[i:] {
						if at.Sub(first) < time.Minute {
							minute++
						}
						if at.Sub(first) < time.Second {
							second++
						}
					}
					if minute > most.minute || second > most.second {
						t.Fatalf("%d messages in a minute, %d in a second from message %d on", minute, second, i)
					}
				}
			})
		})
	}
}

// TestTurnGivenBack holds that who stops waiting delays nobody.
func TestTurnGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := pacer{interval: time.Second}
		for range burst {
			turns.wait(t.Context())
		}
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if turns.wait(ctx) {
				t.Error("a turn after the burst")
			}
			cancel()
		}
		began := time.Now()
		if !turns.wait(t.Context()) || time.Since(began) > time.Second {
			t.Errorf("waited %s", time.Since(began))
		}
	})
}
