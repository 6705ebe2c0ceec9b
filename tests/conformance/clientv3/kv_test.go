// Package clientv3 uses etcd's own Go client against the server under test as programs do: the key-value calls, watches,
// leases, and the packages that etcd builds on nothing but those.
package clientv3

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/clientv3util"

	"duet.local/conformance/internal/etcdclient"
)

func keysOf(kvs []*mvccpb.KeyValue) string {
	var keys []string
	for _, kv := range kvs {
		keys = append(keys, string(kv.Key))
	}
	return strings.Join(keys, " ")
}

func put(t *testing.T, ctx context.Context, kv clientv3.KV, pairs ...string) int64 {
	t.Helper()
	var revision int64
	for i := 0; i < len(pairs); i += 2 {
		revision = etcdclient.Must[*clientv3.PutResponse](t)(kv.Put(ctx, pairs[i], pairs[i+1])).Header.Revision
	}
	return revision
}

func get(t *testing.T, ctx context.Context, kv clientv3.KV, key string, options ...clientv3.OpOption) *clientv3.GetResponse {
	t.Helper()
	return etcdclient.Must[*clientv3.GetResponse](t)(kv.Get(ctx, key, options...))
}

func TestAFreshStoreIsAtRevisionOneAndEveryWriteAddsOne(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	etcdclient.Equal(t, "revision of an empty store", get(t, ctx, client, "a").Header.Revision, int64(1))
	for i := range 5 {
		etcdclient.Equal(t, "revision of a put", put(t, ctx, client, "a", "x"), int64(i+2))
	}
	deleted := etcdclient.Must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "a", clientv3.WithPrevKV()))
	etcdclient.Equal(t, "revision of a delete", deleted.Header.Revision, int64(7))
	etcdclient.Equal(t, "version of the deleted", deleted.PrevKvs[0].Version, int64(5))
	nothing := etcdclient.Must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "a"))
	etcdclient.Equal(t, "revision of a delete of nothing", nothing.Header.Revision, int64(7))
	etcdclient.Equal(t, "count of a delete of nothing", nothing.Deleted, int64(0))
}

func TestAKeyIsBornAgainAfterItsDelete(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	put(t, ctx, client, "a", "1", "a", "2")
	etcdclient.Equal(t, "before", get(t, ctx, client, "a").Kvs[0],
		&mvccpb.KeyValue{Key: []byte("a"), Value: []byte("2"), CreateRevision: 2, ModRevision: 3, Version: 2})
	etcdclient.Must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "a"))
	put(t, ctx, client, "a", "3")
	etcdclient.Equal(t, "after", get(t, ctx, client, "a").Kvs[0],
		&mvccpb.KeyValue{Key: []byte("a"), Value: []byte("3"), CreateRevision: 5, ModRevision: 5, Version: 1})
}

func TestRangesSelectTheKeysTheyName(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	put(t, ctx, client, "a", "5", "b", "4", "b/1", "3", "b/2", "2", "c", "1")
	for name, c := range map[string]struct {
		key     string
		options []clientv3.OpOption
		want    string
	}{
		"one key":              {"b", nil, "b"},
		"half-open range":      {"a", []clientv3.OpOption{clientv3.WithRange("b/2")}, "a b b/1"},
		"prefix":               {"b", []clientv3.OpOption{clientv3.WithPrefix()}, "b b/1 b/2"},
		"from a key":           {"b/1", []clientv3.OpOption{clientv3.WithFromKey()}, "b/1 b/2 c"},
		"everything":           {"", []clientv3.OpOption{clientv3.WithPrefix()}, "a b b/1 b/2 c"},
		"reversed range":       {"c", []clientv3.OpOption{clientv3.WithRange("a")}, ""},
		"descending":           {"", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)}, "c b/2 b/1 b a"},
		"by value":             {"", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)}, "c b/2 b/1 b a"},
		"newest":               {"", clientv3.WithLastRev(), "c"},
		"oldest":               {"", clientv3.WithFirstCreate(), "a"},
		"from a mod revision":  {"", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithMinModRev(4)}, "b/1 b/2 c"},
		"up to a mod revision": {"", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithMaxModRev(3)}, "a b"},
		"at an old revision":   {"", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(3)}, "a b"},
		"serializable":         {"b", []clientv3.OpOption{clientv3.WithSerializable()}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			response := get(t, ctx, client, c.key, c.options...)
			etcdclient.Equal(t, "keys", keysOf(response.Kvs), c.want)
			etcdclient.Equal(t, "header revision", response.Header.Revision, int64(6))
		})
	}
	counted := get(t, ctx, client, "b", clientv3.WithPrefix(), clientv3.WithCountOnly())
	etcdclient.Equal(t, "count only", fmt.Sprint(counted.Count, len(counted.Kvs)), "3 0")
	bare := get(t, ctx, client, "b", clientv3.WithKeysOnly())
	etcdclient.Equal(t, "keys only", string(bare.Kvs[0].Value), "")
}

func TestAListInPagesPinnedToARevisionIsTheListAtThatRevision(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	for i := range 100 {
		put(t, ctx, client, fmt.Sprintf("p/%03d", i), "x")
	}
	pinned := get(t, ctx, client, "p/", clientv3.WithPrefix(), clientv3.WithLimit(7))
	revision := pinned.Header.Revision
	var keys []string
	for page, from := pinned, "p/"; ; {
		for _, kv := range page.Kvs {
			keys = append(keys, string(kv.Key))
		}
		// count counts from the request's key, whatever the limit: newer API servers tell the last page by it.
		etcdclient.Equal(t, "more, by count from "+from, page.Count > int64(len(page.Kvs)), page.More)
		if !page.More {
			break
		}
		// Writes between the pages must not show.
		put(t, ctx, client, fmt.Sprintf("p/%03d-late", len(keys)), "x")
		etcdclient.Must[*clientv3.DeleteResponse](t)(client.Delete(ctx, fmt.Sprintf("p/%03d", len(keys))))
		from = keys[len(keys)-1] + "\x00"
		page = get(t, ctx, client, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd("p/")), clientv3.WithLimit(7), clientv3.WithRev(revision))
	}
	for i, key := range keys {
		if want := fmt.Sprintf("p/%03d", i); key != want {
			t.Fatalf("key %d of the pages is %s, want %s", i, key, want)
		}
	}
	etcdclient.Equal(t, "keys in all pages", len(keys), 100)
}

func TestATransactionTakesTheBranchThatItsComparesChoose(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	create := func(value string) *clientv3.TxnResponse {
		return etcdclient.Must[*clientv3.TxnResponse](t)(client.Txn(ctx).If(clientv3util.KeyMissing("k")).
			Then(clientv3.OpPut("k", value)).Else(clientv3.OpGet("k")).Commit())
	}
	first, second := create("first"), create("second")
	etcdclient.Equal(t, "first create", fmt.Sprint(first.Succeeded, first.Header.Revision), "true 2")
	etcdclient.Equal(t, "second create", fmt.Sprint(second.Succeeded, second.Header.Revision), "false 2")
	etcdclient.Equal(t, "what the second sees", string(second.Responses[0].GetResponseRange().Kvs[0].Value), "first")

	for name, compare := range map[string]clientv3.Cmp{
		"value":                    clientv3.Compare(clientv3.Value("k"), "=", "first"),
		"value, not equal":         clientv3.Compare(clientv3.Value("k"), "!=", "other"),
		"version":                  clientv3.Compare(clientv3.Version("k"), "=", 1),
		"create revision":          clientv3.Compare(clientv3.CreateRevision("k"), "<", 3),
		"mod revision":             clientv3.Compare(clientv3.ModRevision("k"), ">", 1),
		"lease":                    clientv3.Compare(clientv3.LeaseValue("k"), "=", 0),
		"absent key, mod revision": clientv3.Compare(clientv3.ModRevision("none"), "=", 0),
		"a range":                  clientv3.Compare(clientv3.ModRevision("k").WithPrefix(), ">", 0),
	} {
		response := etcdclient.Must[*clientv3.TxnResponse](t)(client.Txn(ctx).If(compare).Commit())
		etcdclient.Equal(t, "compare by "+name, response.Succeeded, true)
	}
	absent := clientv3.Compare(clientv3.Value("none"), "!=", "x")
	response := etcdclient.Must[*clientv3.TxnResponse](t)(client.Txn(ctx).If(absent).Commit())
	etcdclient.Equal(t, "value compare on a missing key", response.Succeeded, false)
}

func TestATransactionIsOneRevisionAndReadsItsOwnWrites(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	put(t, ctx, client, "old", "1")
	response := etcdclient.Must[*clientv3.TxnResponse](t)(client.Txn(ctx).Then(
		clientv3.OpGet("", clientv3.WithPrefix()),
		clientv3.OpPut("new", "2"),
		clientv3.OpDelete("old", clientv3.WithPrevKV()),
		clientv3.OpGet("", clientv3.WithPrefix()),
		clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("nested", "3")}, nil),
	).Commit())
	etcdclient.Equal(t, "revision", response.Header.Revision, int64(3))
	etcdclient.Equal(t, "before its writes", keysOf(response.Responses[0].GetResponseRange().Kvs), "old")
	etcdclient.Equal(t, "deleted", keysOf(response.Responses[2].GetResponseDeleteRange().PrevKvs), "old")
	etcdclient.Equal(t, "after its writes", keysOf(response.Responses[3].GetResponseRange().Kvs), "new")
	for _, kv := range get(t, ctx, client, "", clientv3.WithPrefix()).Kvs {
		etcdclient.Equal(t, "mod revision of "+string(kv.Key), kv.ModRevision, int64(3))
	}
}

func TestRequestsThatAreWrongAreRefusedWithEtcdsOwnWords(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	put(t, ctx, client, "a", "1")
	many := make([]clientv3.Op, 129)
	for i := range many {
		many[i] = clientv3.OpPut(fmt.Sprint(i), "x")
	}
	txn := func(operations ...clientv3.Op) error {
		_, err := client.Txn(ctx).Then(operations...).Commit()
		return err
	}
	op := func(op clientv3.Op) error {
		_, err := client.Do(ctx, op)
		return err
	}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"get without a key":       {op(clientv3.OpGet("")), "etcdserver: key is not provided"},
		"put without a key":       {op(clientv3.OpPut("", "x")), "etcdserver: key is not provided"},
		"delete without a key":    {op(clientv3.OpDelete("")), "etcdserver: key is not provided"},
		"unknown lease":           {op(clientv3.OpPut("k", "v", clientv3.WithLease(77))), "etcdserver: requested lease not found"},
		"ignored value, no key":   {op(clientv3.OpPut("k", "", clientv3.WithIgnoreValue())), "etcdserver: key not found"},
		"ignored lease, no key":   {op(clientv3.OpPut("k", "", clientv3.WithIgnoreLease())), "etcdserver: key not found"},
		"future revision":         {op(clientv3.OpGet("a", clientv3.WithRev(99))), "etcdserver: mvcc: required revision is a future revision"},
		"too large a value":       {op(clientv3.OpPut("k", strings.Repeat("x", 1600<<10))), "etcdserver: request is too large"},
		"too many operations":     {txn(many...), "etcdserver: too many operations in txn request"},
		"the same key twice":      {txn(clientv3.OpPut("k", "1"), clientv3.OpPut("k", "2")), "etcdserver: duplicate key given in txn request"},
		"a put within a delete":   {txn(clientv3.OpPut("k", "1"), clientv3.OpDelete("k")), "etcdserver: duplicate key given in txn request"},
		"an empty key in a txn":   {txn(clientv3.OpPut("", "1")), "etcdserver: key is not provided"},
		"future revision, in txn": {txn(clientv3.OpGet("a", clientv3.WithRev(99))), "etcdserver: mvcc: required revision is a future revision"},
	} {
		etcdclient.ErrorText(t, name, c.err, c.want)
	}
	etcdclient.Equal(t, "revision after all these", get(t, ctx, client, "a").Header.Revision, int64(2))
}

func TestIgnoreValueAndIgnoreLeaseKeepWhatTheKeyHas(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	lease := etcdclient.Must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, 600))
	etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, "a", "kept", clientv3.WithLease(lease.ID)))
	previous := etcdclient.Must[*clientv3.PutResponse](t)(client.Put(ctx, "a", "", clientv3.WithIgnoreValue(), clientv3.WithIgnoreLease(), clientv3.WithPrevKV()))
	etcdclient.Equal(t, "previous version", previous.PrevKv.Version, int64(1))
	kept := get(t, ctx, client, "a").Kvs[0]
	etcdclient.Equal(t, "value", string(kept.Value), "kept")
	etcdclient.Equal(t, "lease", clientv3.LeaseID(kept.Lease), lease.ID)
	etcdclient.Equal(t, "version", kept.Version, int64(2))
}

func TestReadsBelowTheCompactedRevisionAreRefusedAndAtItAreAllowed(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	put(t, ctx, client, "a", "1", "a", "2", "a", "3", "b", "1")
	etcdclient.Must[*clientv3.CompactResponse](t)(client.Compact(ctx, 3, clientv3.WithCompactPhysical()))
	etcdclient.Equal(t, "at the compacted revision", string(get(t, ctx, client, "a", clientv3.WithRev(3)).Kvs[0].Value), "2")
	_, err := client.Get(ctx, "a", clientv3.WithRev(2))
	etcdclient.ErrorText(t, "below it", err, "etcdserver: mvcc: required revision has been compacted")
	_, err = client.Compact(ctx, 3)
	etcdclient.ErrorText(t, "the same again", err, "etcdserver: mvcc: required revision has been compacted")
	_, err = client.Compact(ctx, 99)
	etcdclient.ErrorText(t, "the future", err, "etcdserver: mvcc: required revision is a future revision")
	etcdclient.Equal(t, "the present", string(get(t, ctx, client, "a").Kvs[0].Value), "3")
}

func TestKeysAndValuesAreBytes(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	for _, key := range []string{"\x00", "\x00\x00", "a\x00b", "\xff\xfe", "\xff\xff", "späße", strings.Repeat("k", 64<<10)} {
		for _, value := range []string{"", "\x00", "\xff\xfe\x00", strings.Repeat("\x00\xff", 300<<10)} {
			put(t, ctx, client, key, value)
			if kvs := get(t, ctx, client, key).Kvs; len(kvs) != 1 || string(kvs[0].Key) != key || string(kvs[0].Value) != value {
				t.Errorf("the key %.10q with a value of %d bytes did not come back as it went", key, len(value))
			}
		}
	}
	all := get(t, ctx, client, "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	for i := 1; i < len(all.Kvs); i++ {
		if string(all.Kvs[i-1].Key) >= string(all.Kvs[i].Key) {
			t.Errorf("the key %.10q is listed before %.10q", all.Kvs[i-1].Key, all.Kvs[i].Key)
		}
	}
}

func TestConcurrentCompareAndSwapsLoseNoUpdateAndLeaveNoGap(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	const clients, increments = 16, 25
	put(t, ctx, client, "counter", "0")
	var (
		group     sync.WaitGroup
		mu        sync.Mutex
		revisions = map[int64]bool{}
	)
	for range clients {
		group.Go(func() {
			for done := 0; done < increments; {
				current, err := client.Get(ctx, "counter")
				if err != nil {
					t.Error(err)
					return
				}
				var n int
				fmt.Sscan(string(current.Kvs[0].Value), &n)
				swapped, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("counter"), "=", current.Kvs[0].ModRevision)).
					Then(clientv3.OpPut("counter", fmt.Sprint(n+1))).Commit()
				if err != nil {
					t.Error(err)
					return
				}
				if swapped.Succeeded {
					mu.Lock()
					revisions[swapped.Header.Revision] = true
					mu.Unlock()
					done++
				}
			}
		})
	}
	group.Wait()
	kv := get(t, ctx, client, "counter").Kvs[0]
	etcdclient.Equal(t, "counter", string(kv.Value), fmt.Sprint(clients*increments))
	etcdclient.Equal(t, "version", kv.Version, int64(clients*increments+1))
	for revision := int64(3); revision < 3+clients*increments; revision++ {
		if !revisions[revision] {
			t.Errorf("no swap was answered with revision %d", revision)
		}
	}
}

func TestAStreamedRangeIsTheRange(t *testing.T) {
	ctx, client, _ := etcdclient.Start(t)
	for i := range 60 {
		put(t, ctx, client, fmt.Sprintf("s/%02d", i), strings.Repeat("v", 100<<10))
	}
	whole := get(t, ctx, client, "s/", clientv3.WithPrefix())
	for name, options := range map[string][]clientv3.OpOption{"all": nil, "limited": {clientv3.WithLimit(25)}} {
		stream := etcdclient.Must[clientv3.GetStreamChan](t)(client.GetStream(ctx, "s/", append(options, clientv3.WithPrefix())...))
		var kvs []*mvccpb.KeyValue
		var last *clientv3.GetResponse
		chunks := 0
		for chunk := range stream {
			if err := chunk.Err(); err != nil {
				t.Fatal(err)
			}
			if last != nil && last.Header != nil {
				t.Errorf("%s: a chunk that is not the last carries a header", name)
			}
			last = (*clientv3.GetResponse)(chunk.RangeResponse)
			kvs = append(kvs, last.Kvs...)
			chunks++
		}
		want := whole
		if name == "limited" {
			want = get(t, ctx, client, "s/", clientv3.WithPrefix(), clientv3.WithLimit(25))
		}
		etcdclient.Equal(t, name+": keys and values", kvs, want.Kvs)
		etcdclient.Equal(t, name+": count", last.Count, want.Count)
		etcdclient.Equal(t, name+": more", last.More, want.More)
		etcdclient.Equal(t, name+": revision", last.Header.Revision, want.Header.Revision)
		if chunks < 2 {
			t.Errorf("%s: 6 MB came in %d chunk", name, chunks)
		}
	}
	sorted := etcdclient.Must[clientv3.GetStreamChan](t)(client.GetStream(ctx, "s/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend)))
	if chunk := etcdclient.Receive(t, "the answer to a sorted stream", sorted); chunk.Err() == nil {
		t.Error("a stream sorted by value was not refused")
	}
}
