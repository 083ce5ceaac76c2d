"""A real control plane for tests: etcd, kube-apiserver, kube-controller-manager and the Kubeflow training operator.

Built from Go modules once and cached outside of the checkout. There is no kubelet: `pods.PodRunner` takes its part and
runs the pods of jobs, unmodified, as local processes. `make cluster` leaves one running.
"""
