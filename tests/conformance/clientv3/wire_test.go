package clientv3

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/mod/semver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"duet.local/conformance/harness/testserver"
	"duet.local/conformance/internal/etcdclient"
)

// What the Go client hides: messages as they are on the wire.

func dial(t *testing.T, server *testserver.Server) *grpc.ClientConn {
	t.Helper()
	conn := etcdclient.Must[*grpc.ClientConn](t)(grpc.NewClient(server.Host(), grpc.WithTransportCredentials(insecure.NewCredentials())))
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestHeadersCarryClusterMemberAndRevision(t *testing.T) {
	ctx, _, server := etcdclient.Start(t)
	kv := pb.NewKVClient(dial(t, server))
	first := etcdclient.Must[*pb.PutResponse](t)(kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("1")}))
	if first.Header.ClusterId == 0 || first.Header.MemberId == 0 || first.Header.RaftTerm == 0 {
		t.Errorf("the header lacks an id or a term: %v", first.Header)
	}
	same := func(what string, header *pb.ResponseHeader, revision int64) {
		t.Helper()
		etcdclient.Equal(t, what, header, &pb.ResponseHeader{ClusterId: first.Header.ClusterId, MemberId: first.Header.MemberId,
			RaftTerm: first.Header.RaftTerm, Revision: revision})
	}
	same("put", first.Header, 2)
	same("range at an old revision", etcdclient.Must[*pb.RangeResponse](t)(kv.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Revision: 2})).Header, 2)
	txn := etcdclient.Must[*pb.TxnResponse](t)(kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("b")}}},
		{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("b")}}},
		{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{}}},
	}}))
	same("txn", txn.Header, 3)
	etcdclient.Equal(t, "put within a txn", txn.Responses[0].GetResponsePut().Header, &pb.ResponseHeader{Revision: 3})
	etcdclient.Equal(t, "range within a txn", txn.Responses[1].GetResponseRange().Header, &pb.ResponseHeader{Revision: 3})
	etcdclient.Equal(t, "txn within a txn", txn.Responses[2].GetResponseTxn().Header, &pb.ResponseHeader{})
	members := etcdclient.Must[*pb.MemberListResponse](t)(pb.NewClusterClient(dial(t, server)).MemberList(ctx, &pb.MemberListRequest{}))
	same("member list", members.Header, 0)
	// What Sync gives a client as its endpoints: all that there are, or the loss of one would be the loss of the store.
	var urls []string
	var ids []uint64
	for _, member := range members.Members {
		urls, ids = append(urls, member.ClientURLs...), append(ids, member.ID)
	}
	slices.Sort(urls)
	if !slices.Contains(ids, first.Header.MemberId) {
		t.Errorf("%d has answered, and the members are %d", first.Header.MemberId, ids)
	}
	pair, _ := server.Pair()
	if pair == nil {
		etcdclient.Equal(t, "members", len(ids), 1)
		etcdclient.Equal(t, "client URLs", urls, []string{server.ClientURL})
		return
	}
	both := []string{pair.Endpoint(0), pair.Endpoint(1)}
	slices.Sort(both)
	etcdclient.Equal(t, "client URLs", urls, both)
}

func TestStatusSaysWhatKubernetesNeedsToKnow(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	put(t, ctx, client, "k", "v")
	answer := etcdclient.Must[*clientv3.StatusResponse](t)(client.Status(ctx, server.ClientURL))
	if !semver.IsValid("v"+answer.Version) || semver.Compare("v"+answer.Version, "v3.5.13") < 0 {
		t.Errorf("version %q: an API server asks for progress only of v3.5.13 and newer", answer.Version)
	}
	if answer.Leader == 0 || answer.Leader != answer.Header.MemberId || answer.IsLearner || len(answer.Errors) > 0 {
		t.Errorf("not the status of a healthy leader: %v", answer)
	}
	if answer.DbSize <= 0 || answer.DbSizeInUse <= 0 {
		t.Errorf("sizes are %d and %d", answer.DbSize, answer.DbSizeInUse)
	}
}

func TestWatchResponsesAreEtcdsOnTheWire(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	put(t, ctx, client, "k", "1", "k", "2", "k", "3")
	etcdclient.Must[*clientv3.CompactResponse](t)(client.Compact(ctx, 3))
	stream := etcdclient.Must[pb.Watch_WatchClient](t)(pb.NewWatchClient(dial(t, server)).Watch(ctx))
	create := func(request *pb.WatchCreateRequest) {
		t.Helper()
		if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}}); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(what string, want *pb.WatchResponse) {
		t.Helper()
		got := etcdclient.Must[*pb.WatchResponse](t)(stream.Recv())
		if got.Header.GetClusterId() == 0 {
			t.Errorf("%s: the header lacks the cluster's id", what)
		}
		got.Header = &pb.ResponseHeader{Revision: got.Header.GetRevision()}
		etcdclient.Equal(t, what, got, want)
	}
	at := func(revision int64) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: revision} }

	create(&pb.WatchCreateRequest{Key: []byte("k")})
	receive("first watch", &pb.WatchResponse{Header: at(4), WatchId: 0, Created: true})
	create(&pb.WatchCreateRequest{Key: []byte("k"), WatchId: 7})
	receive("a watch with an id of its own", &pb.WatchResponse{Header: at(4), WatchId: 7, Created: true})
	create(&pb.WatchCreateRequest{Key: []byte("k"), WatchId: 7})
	receive("the id again", &pb.WatchResponse{Header: at(4), WatchId: -1, Created: true, Canceled: true,
		CancelReason: "mvcc: duplicate watch ID provided on the WatchStream"})
	create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")})
	receive("an empty range", &pb.WatchResponse{Header: at(4), WatchId: -1, Created: true, Canceled: true, CancelReason: "mvcc: watcher range is empty"})
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 7}}}); err != nil {
		t.Fatal(err)
	}
	receive("a cancellation on request", &pb.WatchResponse{Header: at(4), WatchId: 7, Canceled: true})
	// Cancelling what isn't there gets no answer, so the next one is the progress.
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 99}}}); err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
		t.Fatal(err)
	}
	receive("progress", &pb.WatchResponse{Header: at(4), WatchId: -1})
	// Last, because on an etcd a stream that had such a watch gives no progress any more.
	create(&pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 2})
	receive("a compacted start", &pb.WatchResponse{Header: at(4), WatchId: 1, Created: true})
	receive("its cancellation", &pb.WatchResponse{Header: at(0), WatchId: 1, Canceled: true, CompactRevision: 3})
}

func TestCallsThatRequireALeaderAreServed(t *testing.T) {
	ctx, _, server := etcdclient.Start(t)
	ctx = metadata.AppendToOutgoingContext(ctx, "hasleader", "true", "client-api-version", "3.6.0")
	etcdclient.Must[*pb.RangeResponse](t)(pb.NewKVClient(dial(t, server)).Range(ctx, &pb.RangeRequest{Key: []byte("a")}))
}

func TestErrorsHaveEtcdsCodes(t *testing.T) {
	ctx, _, server := etcdclient.Start(t)
	conn := dial(t, server)
	kv, lease := pb.NewKVClient(conn), pb.NewLeaseClient(conn)
	call := func(_ any, err error) error { return err }
	for name, c := range map[string]struct {
		err  error
		code codes.Code
		text string
	}{
		"empty key":       {call(kv.Range(ctx, &pb.RangeRequest{})), codes.InvalidArgument, "etcdserver: key is not provided"},
		"value and flag":  {call(kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte("v"), IgnoreValue: true})), codes.InvalidArgument, "etcdserver: value is provided"},
		"lease and flag":  {call(kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Lease: 1, IgnoreLease: true})), codes.InvalidArgument, "etcdserver: lease is provided"},
		"unknown lease":   {call(kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Lease: 1})), codes.NotFound, "etcdserver: requested lease not found"},
		"future revision": {call(kv.Range(ctx, &pb.RangeRequest{Key: []byte("k"), Revision: 9})), codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"},
		"too large":       {call(kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 1600<<10)})), codes.InvalidArgument, "etcdserver: request is too large"},
		"empty operation": {call(kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{}}})), codes.InvalidArgument, "etcdserver: key not found"},
		"revoke":          {call(lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 1})), codes.NotFound, "etcdserver: requested lease not found"},
		"long lease":      {call(lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 9_000_000_001})), codes.OutOfRange, "etcdserver: too large lease TTL"},
	} {
		got := status.Convert(c.err)
		if got.Code() != c.code || got.Message() != c.text {
			t.Errorf("%s: got %v %q, want %v %q", name, got.Code(), got.Message(), c.code, c.text)
		}
	}
}

func TestALeaseStreamAnswersUnknownLeasesWithZero(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	id := grant(t, client, 60)
	stream := etcdclient.Must[pb.Lease_LeaseKeepAliveClient](t)(pb.NewLeaseClient(dial(t, server)).LeaseKeepAlive(ctx))
	for lease, ttl := range map[int64]int64{int64(id): 60, 4711: 0} {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: lease}); err != nil {
			t.Fatal(err)
		}
		answer := etcdclient.Must[*pb.LeaseKeepAliveResponse](t)(stream.Recv())
		if answer.ID != lease || answer.TTL != ttl {
			t.Errorf("renewal of %d: got %d with TTL %d, want TTL %d", lease, answer.ID, answer.TTL, ttl)
		}
	}
}

func TestTheClientPortAnswersHealthChecksAndHTTP(t *testing.T) {
	ctx, _, server := etcdclient.Start(t)
	health := etcdclient.Must[*healthpb.HealthCheckResponse](t)(healthpb.NewHealthClient(dial(t, server)).Check(ctx, &healthpb.HealthCheckRequest{}))
	etcdclient.Equal(t, "grpc.health.v1", health.Status, healthpb.HealthCheckResponse_SERVING)
	fetch := func(path string) (int, string) {
		t.Helper()
		request := etcdclient.Must[*http.Request](t)(http.NewRequestWithContext(ctx, http.MethodGet, server.ClientURL+path, nil))
		response := etcdclient.Must[*http.Response](t)(http.DefaultClient.Do(request))
		defer response.Body.Close()
		body := etcdclient.Must[[]byte](t)(io.ReadAll(response.Body))
		return response.StatusCode, string(body)
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if code, body := fetch(path); code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	var answer struct{ Health, Reason string }
	if code, body := fetch("/health"); code != http.StatusOK || json.Unmarshal([]byte(body), &answer) != nil || answer.Health != "true" {
		t.Errorf("/health: %d %s", code, body)
	}
	var version struct{ Etcdserver, Etcdcluster string }
	if code, body := fetch("/version"); code != http.StatusOK || json.Unmarshal([]byte(body), &version) != nil || !semver.IsValid("v"+version.Etcdserver) {
		t.Errorf("/version: %d %s", code, body)
	}
	_, metrics := fetch("/metrics")
	// A follower asks its PostgreSQL for the size now and then; at first there was none to ask.
	for pair, _ := server.Pair(); pair != nil && !strings.Contains(metrics, "\netcd_mvcc_db_total_size_in_bytes ") && ctx.Err() == nil; {
		time.Sleep(200 * time.Millisecond)
		_, metrics = fetch("/metrics")
	}
	for _, name := range []string{"etcd_server_has_leader 1", "etcd_mvcc_db_total_size_in_bytes ", "grpc_server_handled_total{"} {
		if !strings.Contains(metrics, "\n"+name) {
			t.Errorf("/metrics has no line %s…", name)
		}
	}
}

func TestAClientThatDisappearsLeavesTheOthersAlone(t *testing.T) {
	ctx, client, server := etcdclient.Start(t)
	leaving, cancel := context.WithCancel(ctx)
	for range 20 {
		gone := etcdclient.New(t, server)
		watchCreated(t, leaving, gone, "k")
		gone.Close()
	}
	cancel()
	watch := watchCreated(t, ctx, client, "k")
	put(t, ctx, client, "k", "1")
	etcdclient.Equal(t, "the one that stayed", etcdclient.Events(t, watch, 1), []string{"PUT k=1@2"})
}
