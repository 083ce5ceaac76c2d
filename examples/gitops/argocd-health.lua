-- Argo CD's health of a ModelChain: `resource.customizations.health.modelchain.dev_ModelChain` in ConfigMap argocd-cm.
-- Healthy: all weights are in the store. Degraded: somebody has to act. Suspended, or Progressing: everything else.
local health = {status = "Progressing", message = "no operator has looked at the chain yet"}
if obj.status == nil then
  return health
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  health.message = "the operator has not looked at the last edit yet"
  return health
end
local conditions = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  conditions[condition.type] = condition
end
local ready, stalled = conditions.Ready, conditions.Stalled
if stalled ~= nil and stalled.status == "True" then
  return {status = "Degraded", message = stalled.message}
end
if ready ~= nil then
  health.message = ready.message
  if ready.status == "True" then
    health.status = "Healthy"
  elseif obj.status.phase == "Suspended" then
    health.status = "Suspended"
  end
end
return health
