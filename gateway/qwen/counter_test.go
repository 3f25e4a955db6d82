package qwen

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// plainCount is what Counter.Chat must return, the long way.
func plainCount(tok *Tokenizer, chat Chat) (int, error) {
	prompt, err := Render(chat)
	return len(tok.Append(nil, prompt)), err
}

// TestCounterIsPlainCount compares a counter that remembers little with the plain count,
// again and again, for conversations that share messages in other places.
func TestCounterIsPlainCount(t *testing.T) {
	tok := newTokenizer(t)
	rapid.Check(t, func(t *rapid.T) {
		counter := NewCounter(tok, rapid.SampledFrom([]int{0, 1, 40, 1000}).Draw(t, "entries"))
		g := newGenerator(tok, rapid.Uint64().Draw(t, "seed"))
		pool := make([]string, 12)
		for i := range pool {
			pool[i] = g.message()
		}
		tools := []string{"", g.tools(), g.tools()}
		t.Repeat(map[string]func(*rapid.T){"chat": func(t *rapid.T) {
			picked := rapid.SliceOfN(rapid.SampledFrom(pool), 1, 10).Draw(t, "messages")
			chat := Chat{
				Messages:           []byte("[" + strings.Join(picked, ", ") + "]"),
				Tools:              []byte(rapid.SampledFrom(tools).Draw(t, "tools")),
				NoThinking:         rapid.Bool().Draw(t, "no thinking"),
				NoGenerationPrompt: rapid.Bool().Draw(t, "no generation prompt"),
				Continue:           rapid.Bool().Draw(t, "continue"),
				Dialect:            rapid.SampledFrom(dialects()).Draw(t, "dialect"),
			}
			want, wantErr := plainCount(tok, chat)
			got, err := counter.Chat(chat)
			if got != want && wantErr == nil || (err == nil) != (wantErr == nil) {
				t.Fatalf("%s %s: %d, %v, want %d, %v", chat.Messages, chat.Tools, got, err, want, wantErr)
			}
		}})
	})
}

func TestCounterConcurrently(t *testing.T) {
	tok := newTokenizer(t)
	counter := NewCounter(tok, 64)
	g := newGenerator(tok, 21)
	chats, want := make([]Chat, 50), make([]int, 50)
	for i := range chats {
		chats[i] = g.chat(6)
		var err error
		if want[i], err = plainCount(tok, chats[i]); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 400 {
				i = (i*(worker+1) + worker) % len(chats)
				if got, err := counter.Chat(chats[i]); err != nil || got != want[i] {
					t.Errorf("%s: %d, %v, want %d", chats[i].Messages, got, err, want[i])
				}
				if got := counter.Text("Hello"); got != 1 {
					t.Errorf("Text = %d", got)
				}
			}
		})
	}
	wg.Wait()
}

// TestCounterRemembers checks that the tokenizer reads only the new messages of a
// conversation.
func TestCounterRemembers(t *testing.T) {
	tok := newTokenizer(t)
	counter := NewCounter(tok, 1000)
	messages := `[{"role":"system","content":"You are helpful."}`
	turn := func(i int) string {
		return fmt.Sprintf(`,{"role":"user","content":"question %d"},{"role":"assistant","content":"answer %d"}`, i, i)
	}
	for i := range 20 {
		messages += turn(i)
	}
	chat := Chat{Messages: []byte(messages + "]")}
	if _, err := counter.Chat(chat); err != nil {
		t.Fatal(err)
	}
	// What is remembered is used even if it is wrong: this shows that it is used.
	for i := range counter.cache.shards {
		for j := range counter.cache.shards[i].slots {
			counter.cache.shards[i].slots[j].entry.plain += 1000
			counter.cache.shards[i].slots[j].entry.thinking += 1000
		}
	}
	chat.Messages = []byte(messages + `,{"role":"user","content":"new"}]`)
	want, err := plainCount(tok, chat)
	if err != nil {
		t.Fatal(err)
	}
	// The last assistant's message was counted with thoughts, as it was last; without them
	// it is new, and counts for less by the 1001 that its "uncounted" became.
	got, err := counter.Chat(chat)
	if remembered := (got - want) / 1000; err != nil || remembered < 40 {
		t.Errorf("Chat = %d, %v; %d of 41 messages were remembered", got, err, remembered)
	}
}

func TestCacheIsBounded(t *testing.T) {
	const limit = 64
	c := newCache(limit)
	hot := c.key([]byte("hot"))
	for i := range 10 * limit {
		if i == 0 {
			c.store(hot, entry{plain: -7})
		}
		c.store(c.key(fmt.Append(nil, i)), entry{plain: int32(i)})
		if e, ok := c.load(hot); !ok || e.plain != -7 {
			t.Fatalf("what is asked for all the time is gone after %d", i)
		}
	}
	latest := c.key(fmt.Append(nil, 10*limit-1))
	if e, ok := c.load(latest); !ok || e.plain != 10*limit-1 {
		t.Errorf("the latest is %v, %v", e, ok)
	}
	n := 0
	for i := range c.shards {
		s := &c.shards[i]
		if len(s.index) != len(s.slots) || len(s.slots) > limit/shardCount {
			t.Errorf("shard %d: %d keys, %d slots", i, len(s.index), len(s.slots))
		}
		n += len(s.slots)
	}
	if n != limit {
		t.Errorf("%d entries, want %d", n, limit)
	}
}

// TestMaxMessages: a conversation has at most so many messages, however it is counted.
func TestMaxMessages(t *testing.T) {
	tok := newTokenizer(t)
	for more, good := range map[int]bool{0: true, 1: false} {
		chat := Chat{Messages: []byte("[" + strings.Repeat(`{"role":"u"},`, MaxMessages-1+more) + `{"role":"user"}]`)}
		want, wantErr := plainCount(tok, chat)
		got, err := NewCounter(tok, 1).Chat(chat)
		if (err == nil) != good || (wantErr == nil) != good || good && got != want {
			t.Errorf("%d messages: Chat = %d, %v, Render %d, %v", MaxMessages+more, got, err, want, wantErr)
		}
		if !good && !strings.Contains(err.Error(), "more than 65536") {
			t.Error(err)
		}
	}
}
