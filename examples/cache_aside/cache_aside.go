// Cache-aside with single flight, stale-while-revalidate, tags and negative answers: go-redis v9.
//
// The same in Python is cache_aside.py, in JavaScript cache_aside.mjs: the same names in the same order.
package cacheaside

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	waitMs       = 5_000 // Longer than a load takes: who waited in vain asks the origin.
	retryMs      = 5_000 // An origin that failed is left alone for so long.
	negativeS    = 30    // That the origin has nothing is remembered for so long.
	messageBytes = 1_024 // The longest MSG that CACHE.FAIL takes.
)

// ErrOriginDown: somebody else's load failed moments ago, and there is nothing stale to serve.
var ErrOriginDown = errors.New("origin down")

// Load asks the origin: the value, or nil if it has nothing.
type Load func(context.Context) ([]byte, error)

func Connect(url string) (*redis.Client, error) {
	options, err := redis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	// The read timeout must outlast WAIT. A retry would queue behind the lease that the lost reply may have carried.
	options.ReadTimeout = (waitMs + 1_000) * time.Millisecond
	options.MaxRetries = -1
	options.PoolSize = 100 // A FETCH that waits holds its connection.
	return redis.NewClient(options), nil
}

// Cached is the value of key, or nil if the origin has nothing.
func Cached(ctx context.Context, rdb *redis.Client, key string, load Load, ttl int, tags ...string) ([]byte, error) {
	reply, err := rdb.Do(ctx, "CACHE.FETCH", key, "WAIT", waitMs).Slice()
	if err != nil {
		return nil, err
	}
	if len(reply) < 3 {
		return nil, fmt.Errorf("CACHE.FETCH answered %d fields", len(reply))
	}
	status, value, token := text(reply[0]), []byte(text(reply[1])), text(reply[2])
	switch status {
	case "HIT", "STALE":
		return value, nil
	case "NONE":
		return nil, nil
	case "ERROR":
		return nil, fmt.Errorf("%w: %s", ErrOriginDown, value)
	case "BUSY":
		return load(ctx) // Waited in vain: answer this request, and leave the cache alone.
	}

	fresh, err := load(ctx) // MISS or REFRESH: this caller was elected.
	if err != nil {
		if token != "" {
			message := []byte(err.Error())
			message = message[:min(len(message), messageBytes)]
			settle(ctx, rdb, "CACHE.FAIL", key, token, "MSG", message, "RETRY", retryMs)
		}
		if status == "REFRESH" {
			return value, nil
		}
		return nil, err
	}
	var tagged []any
	if len(tags) > 0 {
		tagged = append(tagged, "TAGS", len(tags))
		for _, tag := range tags {
			tagged = append(tagged, tag)
		}
	}
	if token != "" && fresh == nil {
		settle(ctx, rdb, append([]any{"CACHE.FILLNIL", key, token, "EX", negativeS}, tagged...)...)
	} else if token != "" { // Without one too many loads are under way: nothing to fill.
		settle(ctx, rdb, append([]any{"CACHE.FILL", key, token, fresh, "EX", ttl, "GRACE", ttl}, tagged...)...)
	}
	return fresh, nil
}

// settle ends a lease. The answer is known by now, so no trouble here may cost it; a lease that stays ends by itself.
// It is sent although the request may have been cancelled meanwhile: others wait for it.
func settle(ctx context.Context, rdb *redis.Client, command ...any) {
	// 0: the lease was lost, to an update for instance. Nothing to do.
	if err := rdb.Do(context.WithoutCancel(ctx), command...).Err(); err != nil {
		log.Printf("%s: %v", command[0], err)
	}
}

// text of a reply that is a string or nil.
func text(reply any) string {
	s, _ := reply.(string)
	return s
}
