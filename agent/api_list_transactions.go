package agent

import (
	"context"
	"regexp"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/skeinio/skein/metadata"
)

// ListTransactions, key 66, versions 0 to 2: by state, producer id, age (KIP-994) and pattern (KIP-1152).

// listTxnsPage is how many transactional ids are read at once, listTxnsMax how many are looked at.
const (
	listTxnsPage = 1000
	listTxnsMax  = 1_000_000
)

// kafkaTxnStates are all states that Kafka knows: the prepared ones are never met here.
var kafkaTxnStates = []string{
	"Empty", "Ongoing", "PrepareCommit", "PrepareAbort", "CompleteCommit", "CompleteAbort", "Dead", "PrepareEpochFence",
}

func (s *Server) listTransactions(ctx context.Context, r *request) (reply, error) {
	req := r.msg.(*kmsg.ListTransactionsRequest)
	resp := kmsg.NewPtrListTransactionsResponse()
	resp.SetVersion(r.version)
	for _, state := range req.StateFilters {
		if !slices.Contains(kafkaTxnStates, state) {
			resp.UnknownStateFilters = append(resp.UnknownStateFilters, state)
		}
	}
	if len(req.StateFilters) > 0 && len(resp.UnknownStateFilters) == len(req.StateFilters) {
		return reply{msg: resp}, nil
	}
	var pattern *regexp.Regexp
	if p := deref(req.TransactionalIDPattern); p != "" {
		var err error
		if pattern, err = regexp.Compile("^(?:" + p + ")$"); err != nil {
			resp.ErrorCode = r.note(codeInvalidRegularExpression)
			return reply{msg: resp}, nil
		}
	}
	call, cancel := context.WithTimeout(ctx, txnTimeout)
	defer cancel()
	var after metadata.TransactionalID
	for looked := 0; looked < listTxnsMax; looked += listTxnsPage {
		now, page, err := s.store.ListTxns(call, after, listTxnsPage)
		code, ok := s.txnCode(ctx, "ListTransactions", err, codeProducerFenced)
		if !ok {
			return reply{}, ctx.Err()
		}
		if code != codeNone {
			resp.ErrorCode = r.note(code)
			resp.TransactionStates = nil
			break
		}
		for i := range page {
			if t := &page[i]; s.coordinates(string(t.ID)) && listsTxn(req, t, now) && (pattern == nil || pattern.MatchString(string(t.ID))) {
				x := kmsg.NewListTransactionsResponseTransactionState()
				x.TransactionalID, x.ProducerID, x.TransactionState = string(t.ID), int64(t.Producer), t.State.String()
				resp.TransactionStates = append(resp.TransactionStates, x)
			}
		}
		if len(page) < listTxnsPage {
			break
		}
		after = page[len(page)-1].ID
	}
	return reply{msg: resp}, nil
}

// listsTxn says whether a transactional id passes the filters of ListTransactions.
func listsTxn(req *kmsg.ListTransactionsRequest, t *metadata.TxnRow, now metadata.Millis) bool {
	switch {
	case len(req.StateFilters) > 0 && !slices.Contains(req.StateFilters, t.State.String()):
		return false
	case len(req.ProducerIDFilters) > 0 && !slices.Contains(req.ProducerIDFilters, int64(t.Producer)):
		return false
	case req.DurationFilterMillis >= 0 && req.Version >= 1:
		return t.State == metadata.TxnOngoing && int64(now-t.Started) > req.DurationFilterMillis
	}
	return true
}
