package degrade

// Config is how the ladder is set.
type Config struct {
	L1     L1     `yaml:"l1"`
	Canned Answer `yaml:"canned"`
}

// L1 is what the first level does beside switching streaming off.
type L1 struct {
	MaxTokens int `yaml:"max_tokens"` // an answer's limit from L1 on
}

// Answer is the canned answer of L4.
type Answer struct {
	Status int               `yaml:"status"` // 200, or an error such as 503
	Text   map[string]string `yaml:"text"`   // by language: zh, en, ...
}
