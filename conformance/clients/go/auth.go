package main

import (
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// authentication turns it on and off again. The server's tokens are to live for a second.
func authentication(t *testing.T) {
	nobody := client(t)
	status, err := nobody.AuthStatus(within(t))
	must(t, err)
	equal(t, status.Enabled, false)
	_, err = nobody.AuthEnable(within(t))
	if !errors.Is(err, rpctypes.ErrRootUserNotExist) {
		t.Fatalf("%v", err)
	}
	for _, name := range []string{"root", "user"} {
		_, err = nobody.UserAdd(within(t), name, name+" password")
		must(t, err)
		_, err = nobody.RoleAdd(within(t), name)
		must(t, err)
		_, err = nobody.UserGrantRole(within(t), name, name)
		must(t, err)
	}
	prefix := t.Name() + "/"
	_, err = nobody.RoleGrantPermission(within(t), "user", prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
	must(t, err)
	_, err = nobody.RoleGrantPermission(within(t), "user", "public", "", clientv3.PermissionType(clientv3.PermRead))
	must(t, err)
	_, err = nobody.AuthEnable(within(t))
	must(t, err)

	root := as("root", "root password")
	admin := client(t, root)
	user, logins := answers(t, "/etcdserverpb.Auth/Authenticate", as("user", "user password"))
	t.Run("permissions", func(t *testing.T) { permissions(t, admin, user, nobody, prefix) })
	t.Run("tokens expire", func(t *testing.T) { tokensExpire(t, user, logins, prefix) })
	t.Run("rights change", func(t *testing.T) { rightsChange(t, admin, user, prefix) })

	_, err = admin.AuthDisable(within(t))
	must(t, err)
	_, err = nobody.Put(within(t), "anything", "")
	must(t, err)
	// A client that still sends its token is served.
	_, err = user.Put(within(t), "anything", "")
	must(t, err)
}

func as(name, password string) func(*clientv3.Config) {
	return func(config *clientv3.Config) { config.Username, config.Password = name, password }
}

func permissions(t *testing.T, admin, user, nobody *clientv3.Client, prefix string) {
	_, err := user.Put(within(t), prefix+"a", "1")
	must(t, err)
	_, err = user.Get(within(t), "public")
	must(t, err)
	for _, refused := range []func() error{
		func() error { _, err := user.Put(within(t), "public", ""); return err },
		func() error { _, err := user.Get(within(t), "a", clientv3.WithFromKey()); return err },
		func() error { _, err := user.Txn(within(t)).Then(clientv3.OpPut("public", "")).Commit(); return err },
		func() error {
			_, err := user.Txn(within(t)).If(clientv3.Compare(clientv3.Version("secret"), "=", 0)).Commit()
			return err
		},
		func() error { _, err := user.UserAdd(within(t), "more", ""); return err },
		func() error { _, err := user.Compact(within(t), 1); return err },
	} {
		if err := refused(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Fatalf("%v", err)
		}
	}
	response := take(t, user.Watch(within(t), "secret"))
	equal(t, response.Canceled, true)
	if _, err = nobody.Get(within(t), prefix); !errors.Is(err, rpctypes.ErrUserEmpty) {
		t.Fatalf("%v", err)
	}
	_, err = clientv3.New(clientv3.Config{Endpoints: []string{*endpoint}, Username: "user", Password: "wrong", DialTimeout: deadline})
	if !errors.Is(err, rpctypes.ErrAuthFailed) {
		t.Fatalf("%v", err)
	}
	role, err := admin.RoleGet(within(t), "user")
	must(t, err)
	equal(t, len(role.Perm), 2)
	equal(t, string(role.Perm[1].Key), prefix)
}

// tokensExpire uses a client, after longer and longer pauses, until it had to ask for another token.
func tokensExpire(t *testing.T, user *clientv3.Client, logins <-chan struct{}, prefix string) {
	before := len(logins)
	for pause := time.Second; len(logins) == before; pause *= 2 {
		time.Sleep(pause)
		_, err := user.Put(within(t), prefix+"a", "2")
		must(t, err)
	}
	watch := user.Watch(within(t), prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	take(t, watch)
	_, err := user.Put(within(t), prefix+"a", "3")
	must(t, err)
	equal(t, string(take(t, watch).Events[0].Kv.Value), "3")
}

func rightsChange(t *testing.T, admin, user *clientv3.Client, prefix string) {
	// A change of any right makes all tokens old; the client gets a new one by itself.
	_, err := admin.RoleRevokePermission(within(t), "user", "public", "")
	must(t, err)
	_, err = user.Put(within(t), prefix+"a", "4")
	must(t, err)
	if _, err = user.Get(within(t), "public"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Fatalf("%v", err)
	}
	lease, err := user.Grant(within(t), 100)
	must(t, err)
	_, err = user.Put(within(t), prefix+"leased", "", clientv3.WithLease(lease.ID))
	must(t, err)
	alive, err := user.KeepAlive(within(t), lease.ID)
	must(t, err)
	equal(t, take(t, alive).TTL, 100)
	_, err = user.Revoke(within(t), lease.ID)
	must(t, err)

	_, err = admin.UserChangePassword(within(t), "user", "other password")
	must(t, err)
	if _, err = clientv3.New(clientv3.Config{Endpoints: []string{*endpoint}, Username: "user", Password: "user password", DialTimeout: deadline}); !errors.Is(err, rpctypes.ErrAuthFailed) {
		t.Fatalf("%v", err)
	}
	renamed := client(t, as("user", "other password"))
	_, err = renamed.Get(within(t), prefix+"a")
	must(t, err)
	_, err = admin.UserDelete(within(t), "user")
	must(t, err)
	if _, err = renamed.Get(within(t), prefix+"a"); err == nil {
		t.Fatal("a deleted user is served")
	}
}
