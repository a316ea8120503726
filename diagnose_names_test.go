package kith_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
	"github.com/kithproject/kith/doctor"
	"github.com/kithproject/kith/rendezvous/rendezvoustest"
)

// TestDiagnoseNames: a node knows for a report of a bug what all devices are called, also
// those that it has blocked, called otherwise, or ended the pair with.
func TestDiagnoseNames(t *testing.T) {
	ctx := testContext(t)
	network := rendezvoustest.NewNetwork(1, rendezvoustest.Faults{})
	desk := openNode(t, network, stateDir(t), "desk")
	laptop, phone := openNode(t, network, stateDir(t), "laptop"), openNode(t, network, stateDir(t), "phone")
	for _, other := range []*kith.Node{laptop, phone} {
		pairNodes(ctx, t, desk, other, code.MethodQR)
	}
	if _, err := desk.SetRights("laptop", func(r *kith.Rights) error {
		r.Blocked = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := desk.Rename("laptop", "old-laptop"); err != nil {
		t.Fatal(err)
	}
	if err := phone.Close(); err != nil { // it does not hear of the end, so that the desk keeps it to tell
		t.Fatal(err)
	}
	now, cancel := context.WithCancel(ctx)
	cancel()
	if told, err := desk.Unpair(now, "phone"); told || err != nil {
		t.Fatal(told, err)
	}
	names := desk.DiagnoseNames()
	for _, want := range []doctor.Name{
		{Text: "desk", Kind: "device"}, {Text: "old-laptop", Kind: "device"}, {Text: "laptop", Kind: "device"}, {Text: "phone", Kind: "device"},
		{Text: desk.ID().Short(), Kind: "id"}, {Text: laptop.ID().String(), Kind: "id"}, {Text: phone.ID().String(), Kind: "id"},
	} {
		if !slices.Contains(names, want) {
			t.Errorf("%v is not among them", want)
		}
	}
	if !slices.ContainsFunc(names, func(n doctor.Name) bool { return n.Kind == "folder" && strings.HasPrefix(n.Text, "/") }) {
		t.Errorf("no state directory: %v", names)
	}
}
